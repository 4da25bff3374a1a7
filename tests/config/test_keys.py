"""A key is declared once, and checks, help and reports read that declaration."""

import inspect
import json
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from omegaconf import OmegaConf

from tests.refusal import refused
from triptych import declare
from triptych.cli.arguments import read_command_line
from triptych.config import compose as composing
from triptych.config.check import CONFIGS
from triptych.config.identity import register_resolvers
from triptych.config.keys import TARGET, Key, find_key, invalid_values
from triptych.config.schema import Decoders, Train, Variances
from triptych.config.signatures import REQUIRED, TABLE, inspect_class, is_listed
from triptych.config.trust import OURS, import_class
from triptych.data.base import DataError
from triptych.declare import ClassName, Count, FilePath, Ge, Gt, IsPath, Le, Role, Seed, Share
from triptych.diffusion.decoder import Decoder
from triptych.diffusion.reverse_variance import ReverseVariance
from triptych.errors import UserError
from triptych.run.read import Run
from triptych.study.axes import find_comparison_axes

HOUSE = CONFIGS.parent
make_table = runpy.run_path(str(HOUSE / "docs" / "signatures.py"))["make_table"]
keys_page = runpy.run_path(str(HOUSE / "docs" / "keys.py"))["keys_page"]
CLASS = """
from torch import nn
from triptych.declare import Annotated, Gt, Le, Literal, Role, Unit

Heat = Annotated[float, Gt(0), Le(3), Unit("kelvin")]

class Net(nn.Module):
    def __init__(self, shape, outputs=1, spacing=None, heat: Heat = 1.0, mode: Literal["a", "bc"] = "a"):
        super().__init__()
"""


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Iterator[Path]:
    """Make a trusted user package with a configuration file that names its class."""
    package = tmp_path / "lab" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "net.py").write_text(CLASS)
    folder = tmp_path / "lab" / "configs" / "denoiser"
    folder.mkdir(parents=True)
    text = "network:\n  _target_: mine.net.Net\n  heat: 2.0  # of the bath\n"
    (folder / "mine.yaml").write_text(text)
    monkeypatch.setenv("TRIPTYCH_TRUST", "mine")
    monkeypatch.syspath_prepend(str(tmp_path / "lab"))
    yield tmp_path / "lab"
    for name in ("mine", "mine.net"):
        sys.modules.pop(name, None)


def test_annotated_argument_appears_in_check_help_page_and_report(lab, capsys):
    """Check, message, help, the page of all keys and the axes of a report know the key."""
    mine = ["--config-dir", str(lab / "configs"), "denoiser=mine"]
    line = refused(
        lambda: read_command_line([*mine, "denoiser.network.heat=4", "--cfg", "job"], "train")
    )
    assert line == "denoiser.network.heat=4: must be a number above 0, at most 3"
    with pytest.raises(SystemExit, match="0"):
        read_command_line([*mine, "--help"], "train")
    told = capsys.readouterr().out
    assert (
        "denoiser.network.heat=2.0" in told
        and "a number above 0, at most 3 (kelvin); of the bath" in told
    )
    assert "+denoiser.network.mode=a" in told and "# a or bc" in told
    page = keys_page([CONFIGS, lab / "configs"])
    assert "- `denoiser.network.heat` `2.0`: number > 0, at most 3 (kelvin)" in page
    config = {"denoiser.network._target_": "mine.net.Net"}
    about = {"status": "finished", "seed": 1, "dir": Path("x"), "name": "x"}
    runs = [Run(config=config | {"denoiser.network.heat": heat}, **about) for heat in "12"]
    assert [axis.key for axis in find_comparison_axes(runs)[0]] == ["denoiser.network.heat"]


def test_keys_page_is_current():
    assert (HOUSE / "docs" / "keys.md").read_text() == keys_page(), (
        "python docs/keys.py > docs/keys.md"
    )


def test_every_config_key_has_a_declared_type():
    """Each key has a type, because a key that takes anything would not be checked."""
    free = {
        "measures.values",
        "data.means",
        "data.covariances",
        "hydra.sweeper.tune",
        "hydra.sweeper.params",
    }
    free |= {"objective.output.space", "sampler.variance"}  # short names, which the builder checks
    for line in (HOUSE / "docs" / "keys.md").read_text().splitlines():
        if match := re.match(r"- `\+?([^`]+)` (?:`[^`]*`|by choice): ?([^;]*)", line):
            key, kind = match.groups()
            assert kind.strip() or key in free, line


def test_the_table_of_signatures_is_current():
    written, made = json.loads(TABLE.read_text()), json.loads(make_table())
    if written.pop("torch") != made.pop("torch"):  # of another Python's pins
        for table in (written, made):
            table["classes"] = {
                k: v for k, v in table["classes"].items() if not k.startswith("torch.")
            }
    assert written == made, "make signatures"


def test_every_class_that_the_files_name_is_in_the_table():
    named = {
        name for file in CONFIGS.rglob("*.yaml") for _, name in TARGET.findall(file.read_text())
    }
    assert all(is_listed(name) for name in named if name.startswith((*OURS, "torch.")))


def test_an_argument_without_a_declaration_has_its_parents():
    class Parent:
        def __init__(self, width: Count, depth: Count = 2, seed: Seed = 0): ...

    class Child(Parent):
        def __init__(self, width: int = 8, *, scale: Share, **options: Any):
            super().__init__(width, **options)

    class Closed(Child):
        def __init__(self, width, scale=1.0): ...

    child, closed = inspect_class(Child), inspect_class(Closed)
    assert list(child.named) == ["width", "scale", "depth", "seed"] and not child.takes_any
    assert child.named["width"] == (Count, 8) and child.named["scale"] == (Share, REQUIRED)
    assert list(closed.named) == ["width", "scale"]
    assert closed.named["width"] == (Count, REQUIRED) and closed.named["scale"] == (Share, 1.0)


Positive, Pair = Annotated[float, Gt(0), Le(10)], tuple[Share, Share]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (Count, [1, 7], [0, -1, True, 1.5, "a", None], "a whole number of at least 1"),
        (Count | None, [None, 1], [0], "null or a whole number of at least 1"),
        (Share, [0, 0.5, 1], [1.5, float("nan"), True], "a number in [0, 1]"),
        (Positive, [1e-9, 10], [0, float("inf"), 1e10], "a number above 0, at most 10"),
        (Seed, [0, 2**32 - 1], [2**32, -1], "a whole number from 0 to 4294967295"),
        (Pair, [[0, 1], (0, 1)], [[0], [0, 2], 0, "ab"], "a list of 2, each a number in [0, 1]"),
        (Sequence[Count], [[], [1]], [[0], "1"], "a list, each a whole number of at least 1"),
        (Literal[None, "strip", "gif"], [None, "gif"], ["film", 0], "null, strip or gif"),
        (Literal["a", "b", "c"], ["a"], ["d"], "a, b or c"),
        (Literal[1, 3], [1], [True, 2, 1.0], "1 or 3"),
        (bool, [True], [1, "true"], "true or false"),
        (FilePath | None, ["x", Path("x"), None], [3, ""], "null or a path"),
        (Any, [1, None, "x"], [], ""),
    ],
)
def test_fits_and_describe_kind_for_each_annotation(kind, good, bad, words):
    assert all(declare.is_valid_value(kind, value) for value in good)
    assert not any(declare.is_valid_value(kind, value) for value in bad)
    assert declare.describe_kind(kind) == words


def test_declared_checks_arguments_of_subclasses():
    @declare.declared("place")
    class Parent:
        def __init__(self, steps: Annotated[int, Ge(1)], **more: Any) -> None:
            self.steps = steps

    class Child(Parent):
        def __init__(self, steps: int, rate: "Share" = 0.5) -> None:
            super().__init__(steps)

    assert Child(3).steps == 3
    with pytest.raises(ValueError, match=r"^place\.steps=0: must be a whole number of at least 1$"):
        Child(0)
    with pytest.raises(ValueError, match=r"^place\.rate=2: must be a number in \[0, 1\]$"):
        Child(1, rate=2)
    with pytest.raises(TypeError, match="stesp"):
        Child(stesp=1)


# One class for each declared base, with its arguments; the page of all keys has their ranges.
HELD = [
    ("bound.steps", "diffusion.bound.Bound", {"schedule": None, "decoder": None, "steps": 0}),
    ("data.modes", "data.mixture.Ring", {"modes": 2.5}),
    ("data.encoder.length", "data.text.Words", {"length": 0}),
    ("guidance.rescale", "diffusion.guidance.ClassifierFree", {"denoiser": None, "scale": 2, "rescale": 1.5}),
    ("likelihood.probes", "diffusion.likelihood.Likelihood", {"schedule": None, "probes": 1}),
    ("model.network.levels", "networks.conv_ladder.ConvLadder", {"shape": (), "outputs": 2, "levels": 0}),
    ("objective.steps", "diffusion.objective.Objective", {"output": "x0", "loss": None, "steps": 10**9 + 1}),
    ("objective.loss.cap", "diffusion.loss.MinSNR", {"cap": float("nan")}),
    ("objective.times.std", "diffusion.times.LogNormal", {"std": 0.0}),
    ("process.sigma_data", "diffusion.process.Preconditioned", {"sigma_data": 0.0}),
    ("sampler.eta", "diffusion.sampler.DDIM", {"steps": 5, "eta": 1.5}),
    ("schedule.gamma_min", "diffusion.schedule.Linear", {"gamma_min": float("inf"), "gamma_max": 5.0}),
    ("threshold.quantile", "diffusion.wrappers.DynamicThreshold", {"denoiser": None, "quantile": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "name", "arguments"), HELD)
def test_declared_class_refuses_value_out_of_range(key, name, arguments):
    error = DataError if key.startswith("data") else ValueError
    wrong = arguments[key.rpartition(".")[2]]
    refused(
        lambda: import_class(f"triptych.{name}")(**arguments),
        f"{key}={wrong!r}: must be ",
        error=error,
    )


def test_unfit_reports_key_with_value_out_of_range(prepared):
    config = prepared().config()
    assert not list(invalid_values(config, Key(Train)))
    for key, value in (
        ("optimizer.lr", 1e10), ("optimizer.betas", [0.9]), ("schedule.gamma_min", -1e6), ("samples.n", -1),
        ("denoiser.network.blocks", -1), ("denoiser.network.width", 0), ("trainer.max_steps", 0),
        ("trainer.gradient_clip_val", -1), ("lr_schedule.warmup_steps", -5), ("lr_schedule.floor", -2),
        ("threads", 1.5), ("bound.repeats", 0), ("bound.steps", 0), ("seed", -1), ("samples.n", 10**9),
        ("callbacks.ema.snapshots", -1), ("logger.wandb", 3), ("data.batch_size", 0.5), ("bound", None),
        ("sampler.steps", 0), ("threads", 0), ("data.batch_size", 0), ("optimizer.lr", -1),
        ("trainer.devices", 0),
    ):  # fmt: skip
        changed = OmegaConf.create(config)
        OmegaConf.update(changed, key, value, force_add=True)
        [(named, said)] = invalid_values(OmegaConf.to_container(changed), Key(Train))
        assert named == key and said.startswith(f"{key}=") and ": must be " in said, said


def test_find_key_reports_role_and_path_mark():
    register_resolvers()
    keys = ("data.val_size", "data.test_fraction", "data.std", "sampler.grid")
    assert [find_key(key).role for key in keys] == [
        Role.SPLIT,
        Role.JUDGED,
        Role.DATA,
        Role.DRAWING,
    ]
    assert all(
        find_key(key).find_annotation(IsPath)
        for key in ("guidance.weak", "data.root", "measures.inception")
    )
    assert find_key("items", command="evaluate").find_annotation(IsPath) and not find_key(
        "data.std"
    ).find_annotation(IsPath)


def test_mapping_argument_accepts_any_name_and_checks_values():
    found = composing.compose_command("train", ["model.label_dropout={text:0.1}"])
    assert dict(found.model.label_dropout) == {"text": 0.1}
    with pytest.raises(UserError, match=r"schedule\.gamma_min"):
        composing.compose_command("train", ["schedule.gamma_min={text:0.1}"])


def test_declared_short_names_match_registered_classes():
    """The schema refuses a wrong name before torch is imported; the classes define the names."""
    for declared_names, kind in ((Decoders, Decoder), (Variances, ReverseVariance)):
        named, own = get_args(declared_names)
        assert set(get_args(named)) == set(kind.named) and own is ClassName
        every = (
            one for one in vars(sys.modules[kind.__module__]).values() if isinstance(one, type)
        )
        concrete = {one for one in every if issubclass(one, kind) and not inspect.isabstract(one)}
        assert set(kind.named.values()) == {
            one for one in concrete if one.__module__ == kind.__module__
        }
