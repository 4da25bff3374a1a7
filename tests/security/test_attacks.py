"""Hostile checkpoints and directories, for each command: they are refused without any effect."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision import datasets

from tests.refusal import refused_command
from triptych.config import own_code
from triptych.config.build import build, check_targets
from triptych.data.build import build_data
from triptych.errors import UserError
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.initialization import read_other_checkpoint
from triptych.run.model import build_model
from triptych.run.reopen import reopen
from triptych.run.untrusted import OWN, adopt_trained_config, check_checkpoint, check_config

from .strangers import attacks, configuration, marks, put, save_checkpoint, save_run

CACHES = ("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture(scope="module")
def config():
    return configuration()


DOORS = {
    "evaluate ckpt={ckpt}": "command",
    "sample ckpt={ckpt}": "file",
    "train resume={run}": "pickle",
    "train trained={run} logger=csv": "command",
}


@pytest.mark.parametrize("line", DOORS)
def test_commands_refuse_unsafe_target_in_config(door, root, config, line):
    """The configuration is in a separate file, and is refused before torch is imported."""
    (root / "first").mkdir()
    if "resume" in line:
        (root / "first" / "torch.py").write_text(f"open({str(root / 'mark-torch')!r}, 'w')")
    evil = put(config, "data", attacks(root)[DOORS[line]])
    run = save_run(root / "theirs", evil, "finished" if "trained" in line else "")
    ckpt = save_checkpoint(run / "checkpoints" / "last.ckpt", evil)
    before = sorted(run.rglob("*"))
    command, *typed = line.format(run=run, ckpt=ckpt).split()
    path = os.pathsep.join([str(root / "first"), *sys.path])
    fresh = command == "train"  # The others have imported torch to read the checkpoint.
    result = door(f"triptych.cli.{command}", *typed, timeout=60, fresh=fresh, PYTHONPATH=path)
    refused_command(result, "data", "_target_=triptych.", "class is not allowed in a configuration")
    assert not marks(root) and sorted(run.rglob("*")) == before


RING = ["data=ring", "denoiser=mlp"]
DIGITS = ["data=digits", "denoiser=resnet"]
GUIDES = {
    "guide": [*RING, "guidance=auto", "guide={}"],
    "guidance.weak": [*RING, "guidance=auto", "guidance.weak={}"],
    "guidance.classifier": [*RING, "guidance=classifier", "guidance.classifier={}"],
    "measures.classifier": [*DIGITS, "measures.n=8", "measures.classifier={}"],
}


@pytest.mark.parametrize("which", GUIDES)
def test_guide_checkpoint_with_unsafe_target_is_refused(prepared, root, which):
    """The job's process opens them; the attack is in the guide's own configuration."""
    keys = GUIDES[which]
    config = configuration(data=keys[:2])
    path = save_checkpoint(root / "x.ckpt", put(config, "schedule", attacks(root)["pickle"]))
    with pytest.raises(UserError, match="_target_=triptych.run.*class is not allowed") as caught:
        execute(prepared(*(key.format(path) for key in keys)))
    assert "\n" not in str(caught.value) and not marks(root)


PLACES = """
sampler callbacks.x callbacks.ema metrics metrics.x logger.x schedule.gamma_min data.x
""".split()


@pytest.mark.parametrize("place", PLACES)
def test_check_config_refuses_unsafe_target_at_any_depth(root, config, place):
    """Also inside a list, a group, and below Hydra's other keys."""
    for node in attacks(root).values():
        forms = [
            node,
            [node],
            [[{"deep": node}]],
            {"_partial_": True} | node,
            {"_convert_": "all"} | node,
        ]
        for form in forms:
            with pytest.raises(
                UserError, match=f"{place}.*_target_=triptych.*: class is not allowed"
            ):
                check_config(put(config, place, form), "x")
    assert not marks(root)


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_mode_", "__class__"])
def test_check_config_refuses_unknown_hydra_keys(config, key):
    with pytest.raises(UserError, match=key):
        check_config(put(config, f"data.{key}", False), "x")


MLP = {"_target_": "triptych.networks.mlp.MLP"}
OF_TRAINER = "plugins callbacks default_root_dir logger enable_checkpointing".split()
ELSEWHERE = [  # classes that may be named, in the place of others
    ("data", "triptych.networks.mlp.MLP"),
    ("model", "triptych.data.mixture.Ring"),
    ("sampler", "triptych.callbacks.ema.EMA"),
    ("optimizer", "pytorch_lightning.Trainer"),
    ("metrics.x", "triptych.networks.mlp.MLP"),
    ("trainer", "torch.optim.SGD"),
]
REFUSED = [
    *((f"trainer.{key}", "pytorch", key) for key in OF_TRAINER),
    *(
        (place, {"_target_": name}, f"{place}._target_={name}: must be a subclass")
        for place, name in ELSEWHERE
    ),
]


@pytest.mark.parametrize(("place", "value", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_check_targets_refuses_class_at_wrong_node(config, place, value, words):
    with pytest.raises(UserError, match=words):
        check_targets(put(config, place, value))


@pytest.mark.parametrize("key", ["strategy", "profiler"])
def test_check_config_refuses_class_as_trainer_value(config, key):
    with pytest.raises(UserError, match=f"trainer.{key}"):
        check_config(put(config, f"trainer.{key}", MLP), "x")


def test_interpolation_in_checkpoint_config_is_refused(root, config, monkeypatch):
    """``${oc.env:...}`` would reveal the user's environment."""
    monkeypatch.setenv("SECRET", "hunter2")
    path = save_checkpoint(root / "x.ckpt", put(config, "data.root", "${oc.env:SECRET}"))
    with pytest.raises(UserError, match="data.root.*interpolation is not allowed") as caught:
        check_checkpoint(str(path))
    assert "hunter2" not in str(caught.value)


def test_build_does_not_resolve_interpolation_in_text():
    """An object gets the text of its configuration, whoever wrote it."""
    made = build({"_target_": "triptych.data.folder.ImageFolder", "root": "${oc.env:HOME}"}, "data")
    assert str(made.root) == "${oc.env:HOME}"


@pytest.mark.parametrize("which", ["evaluate", "resume", "trained"])
def test_untrusted_config_does_not_download_data(root, config, which, monkeypatch):
    monkeypatch.delenv(OWN, raising=False)
    asked = []
    monkeypatch.setattr(datasets, "MNIST", lambda *a, **k: asked.append(k.get("download")))
    node = {"_target_": "triptych.data.mnist.Mnist", "root": str(root / "mark"), "download": True}
    evil = put(config, "data", node)
    theirs = save_run(root / "theirs", evil, "finished" if which == "trained" else "")
    path = save_checkpoint(theirs / "checkpoints" / "last.ckpt", evil)
    with pytest.raises(UserError, match="data.root"):
        if which == "evaluate":
            reopen(str(path))
        elif which == "resume":
            execute(RunDirectory(theirs))
        else:
            adopt_trained_config(mine := configuration(f"trained={theirs}"), {}, [])
            build_data(mine)
    assert not marks(root) and not any(asked)


def test_checkpoint_path_outside_run_directory_is_ignored(root, config):
    theirs = RunDirectory(save_run(root / "theirs", config, "finished"))
    result = {"schema": 1, "status": "finished", "checkpoint": str(root / "other.ckpt")}
    theirs.write("summary.json", result)
    save_checkpoint(root / "other.ckpt", config)
    with pytest.raises(UserError, match="checkpoints/last.ckpt"):
        read_other_checkpoint("trained", str(theirs.path), None, "")


@pytest.mark.parametrize("group", ["data", "model", "bound", "objective"])
def test_checkpoint_config_without_required_group_is_refused(root, config, group):
    for value in (None, "x", 3, [], {"a": 1}):
        path = save_checkpoint(root / "x.ckpt", put(config, group, value))
        problems = "has no class|must be a group|the dotted name"
        with pytest.raises(UserError, match=f"has no {group};|{problems}|cannot be built"):
            reopen(str(path))


def test_trusted_package_allows_its_own_classes_only(root, config, monkeypatch, trusting):
    """Its classes may be named, but not its functions or what it imports."""
    package = root / "lab_nets"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from subprocess import Popen\nfrom lab_nets.net import Net\n"
    )
    (package / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width=1):\n"
        "        super().__init__()\n        self.width = width\ndef run(width=1):\n    raise "
        "SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(root))
    nets = [{"_target_": name, "width": 3} for name in ("lab_nets.Net", "lab_nets.net.Net")]
    for node in nets:
        with pytest.raises(UserError, match="class is not allowed"):
            build(node, "denoiser.network")
    trusting("other, lab_nets")
    assert [build(node, "denoiser.network").width for node in nets] == [3, 3]
    others = "lab_nets.Popen lab_nets.net.run lab_nets.net.nn.Linear lab_netsx.Net lab_nets"
    for name in others.split():
        with pytest.raises(UserError):
            build({"_target_": name}, "denoiser.network")


def test_trust_is_read_from_pyproject_of_clone(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[tool.triptych]\ntrust = ["my_lab"]\n')
    monkeypatch.setattr(own_code, "PYPROJECT", tmp_path / "pyproject.toml")
    monkeypatch.delenv("TRIPTYCH_TRUST", raising=False)
    assert own_code._trusted_packages.__wrapped__("") == ("my_lab",)


def test_triptych_trust_can_be_changed_at_runtime(monkeypatch):
    for names in ((), ("lab_a",), ("lab_a", "lab_b")):
        monkeypatch.setenv("TRIPTYCH_TRUST", ",".join(names))
        assert own_code.trusted_packages() == names


@pytest.mark.slow
@pytest.mark.parametrize("which", ["evaluate", "sample", "resume"])
def test_commands_on_valid_checkpoint_write_only_to_its_folder(root, config, which):
    """The commands write where they are told, run no program and unpickle nothing."""
    state = build_model(config, build_data(config)).state_dict()
    theirs = root / "place"
    theirs.mkdir()
    if which == "resume":
        theirs = save_run(root / "theirs", config)
    path = save_checkpoint(root / "x.ckpt", config, state)
    arguments = {
        "evaluate": ["triptych.cli.evaluate", f"ckpt={path}", f"out={theirs}/figures.json"],
        "sample": [
            "triptych.cli.sample",
            f"ckpt={path}",
            "n=4",
            "sampler.steps=2",
            f"out={theirs}/samples",
        ],
        "resume": ["triptych.cli.train", f"resume={theirs}"],
    }[which]
    result = subprocess.run(
        [
            sys.executable,
            "-B",
            Path(__file__).with_name("watch.py"),
            theirs,
            root / "log",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=theirs,
        # Caches and temporary files of the libraries.
        env=os.environ | dict.fromkeys(CACHES, str(theirs)),
    )
    assert result.returncode == 0, result.stderr
    # Programs that read the commit (ours), the fonts (matplotlib) and the machine (torch).
    usual = ("git", "fc-list", "nvidia-smi", "uname", "lscpu")
    seen = [
        s for s in (root / "log").read_text().splitlines() if not any(f"'{a}'" in s for a in usual)
    ]
    assert seen == [], "\n".join(seen)
