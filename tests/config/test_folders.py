"""Only configurations of trusted packages are found, and only these are imported."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from triptych.config import source
from triptych.config.compose import CONFIGS, compose_command
from triptych.config.describe import inheritance_chain, inherited_comment
from triptych.config.explain import explain
from triptych.config.identity import register_resolvers
from triptych.config.keys import find_key
from triptych.config.signatures import arguments
from triptych.declare import IsPath
from triptych.errors import UserError

DATA = "_target_: lab_a.data.Mine\nwhere: x\n"
CLASS = (
    "from triptych.declare import FilePath\nclass Mine:\n    def __init__(self, where: FilePath): "
    "...\n"
)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages with configurations; the first is trusted, the second cannot be imported."""

    def trusting(names: str) -> None:
        monkeypatch.setenv("TRIPTYCH_TRUST", names)

    for name in ("lab_a", "lab_b"):
        (tmp_path / name / "configs" / "data").mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "lab_b" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "lab_a" / "data.py").write_text(CLASS)
    (tmp_path / "lab_a" / "configs" / "data" / "mine.yaml").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    trusting("lab_a,lab_lost")
    yield tmp_path, trusting
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab_a"]:
        del sys.modules[name]


def composed(*overrides: str, at: Path = CONFIGS, name: str = "train"):
    register_resolvers()
    with initialize_config_dir(str(at), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def test_only_trusted_packages_add_config_choices(packages):
    _, trusting = packages
    assert composed("data=mine").data.where == "x"
    assert find_key("data.where").find_annotation(IsPath)
    trusting("lab_b")
    with pytest.raises(MissingConfigException):
        composed("data=mine")
    assert not find_key("data.where").find_annotation(IsPath)


def test_other_hydra_program_does_not_see_trusted_packages(packages, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "data").mkdir(parents=True)
    (theirs / "train.yaml").write_text("defaults:\n- data: null\n")
    with pytest.raises(MissingConfigException):
        composed("data=mine", at=theirs)


@pytest.mark.parametrize("package, name", [("lab_a", "digits"), ("lab_b", "mine")])
def test_config_name_defined_twice_is_refused(packages, package, name):
    """The clone or another package has the name, so one of two files would be ignored silently."""
    root, trusting = packages
    (root / package / "configs" / "data" / f"{name}.yaml").write_text(DATA)
    trusting("lab_a,lab_b")
    with pytest.raises(
        UserError, match=f"{package}/configs/data/{name}.yaml: same name as .*; choose "
    ):
        composed()


def test_unknown_choice_suggests_choice_of_trusted_package(packages):
    said = explain(Exception("Could not find 'data/mien'"), "train")
    assert "data=mien: no such choice; did you mean mine?" in said


def test_config_comment_is_inherited_through_defaults_list(packages):
    root, _ = packages
    file = root / "lab_a" / "configs" / "callbacks" / "more.yaml"
    file.parent.mkdir()
    file.write_text("defaults: [default]\n")
    assert inheritance_chain(file) == [file, CONFIGS / "callbacks" / "default.yaml"]
    assert "as a share of the run" in inherited_comment(
        "callbacks.ema.sigma_rel", file, "callbacks"
    )
    assert source.config_folders() == (CONFIGS, root / "lab_a" / "configs")


def test_composition_does_not_change_cached_config_files():
    """A process reads each file once, and Hydra puts the parsed file itself into a composition."""
    for choice, over in (
        ("ablation=guidance", "guidance.scale"),
        ("ablation=samplers", "evaluations"),
    ):
        assert compose_command("train", [choice]).measures.over == over
        assert compose_command("train", ["seed=2"]).measures.over is None


def test_unknown_key_in_config_file_is_refused(tmp_path):
    (tmp_path / "process").mkdir()
    file = tmp_path / "process" / "mine.yaml"
    file.write_text("_target_: triptych.diffusion.process.Preconditioned\nsigma_dat: 0.5\n")
    with pytest.raises(UserError, match=r"^process.sigma_dat=0.5: no such key; did you mean"):
        compose_command("train", ["process=mine", f"hydra.searchpath=[file://{tmp_path}]"])


@pytest.mark.parametrize("names", ["", "planted_lab"])
def test_a_package_is_imported_only_where_it_is_trusted(tmp_path, monkeypatch, names):
    mark = tmp_path / "mark"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    (tmp_path / "planted_lab.py").write_text(
        f"{code}class Net:\n    def __init__(self, width=8): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted_lab", raising=False)
    monkeypatch.setenv("TRIPTYCH_TRUST", names)
    found = arguments("planted_lab.Net")
    assert (found is not None) == mark.exists() == bool(names)
    assert found is None or found.named["width"].default == 8
