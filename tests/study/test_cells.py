"""The names of a sweep's directory and of its cells."""

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from tests import forked
from tests.run.commands import command, environment
from triptych.config.check import CONFIGS
from triptych.config.identity import register_resolvers, sweep_name
from triptych.run.read import find_runs
from triptych.run.sweep_record import SweepRecord
from triptych.study.study import read_study


def name_of(*overrides: str) -> str:
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return sweep_name(loader.load_configuration("train", list(overrides), RunMode.MULTIRUN))


@pytest.mark.parametrize(
    "one, other, same",
    [
        (["denoiser=unet", "seed=1"], ["denoiser=unet,resnet", "seed=1,2"], True),
        (["objective=v", "denoiser=unet"], ["objective=v,x0"], True),
        # A short try does not count as a cell of the other sweep.
        (["objective=v"], ["objective=v", "trainer.max_steps=9"], False),
        (
            ["ablation=objectives"],
            ["ablation=objectives", "data=mnist"],
            False,
        ),  # a fixed design, changed
        (["ablation=objectives"], ["ablation=objectives", "seed=7"], True),
        (
            ["experiment=ring", "schedule=cosine"],
            ["experiment=ring", "schedule=cosine,linear"],
            False,
        ),
        (["name=a", "objective=v"], ["name=b", "objective=v"], False),
        (
            ["name=a", "objective=v", "trainer.max_steps=9"],
            ["name=a", "data=mnist", "seed=1,2"],
            True,
        ),
    ],
)
def test_sweep_name_treats_single_value_as_axis(one, other, same):
    assert (name_of(*one) == name_of(*other)) == same


def test_sweep_name_is_given_name():
    assert (
        name_of("name=mine", "objective=v,x0", "trainer.max_steps=9", "bound.repeats=2") == "mine"
    )


def test_sweep_name_with_many_shared_overrides_is_short():
    """Overrides that all runs share are recorded, and need not be repeated in each path."""
    shared = ["trainer.max_steps=900", "optimizer.lr=0.003", "data.batch_size=64"]
    shared += ["denoiser.network.width=32"]
    name = name_of(*shared, "objective=v,x0")
    assert name.startswith("sweep,") and len(name) <= 48
    assert name != name_of(*shared[:3], "denoiser.network.width=64", "objective=v,x0")
    assert name_of(*reversed(shared), "objective=v,x0") == name


def test_single_value_is_named_like_earlier_cells_of_axis(root, prepared, door, tiny):
    """The sweep had schedule=linear,cosine; schedule=sigmoid is named like them.

    No run counts as missing.
    """
    ring = (
        "denoiser=mlp data=ring data.train_size=60 data.val_size=20 data.test_size=30 samples.n=0"
    ).split()
    for schedule in ("linear", "cosine"):
        prepared(
            "name=s",
            *ring,
            f"schedule={schedule}",
            "seed=1",
            path=f"../sweeps/s/schedule={schedule},seed=1",
        )
    sweep = root / "logs" / "sweeps" / "s"
    (sweep / "sweep.json").write_text('{"named": ["schedule"]}')
    line = ["-m", "name=s", "schedule=sigmoid", "seed=1,2", *tiny, *ring]
    done = door("triptych.cli.train", *line)
    assert done.returncode == 0, done.stderr
    assert (sweep / "schedule=sigmoid,seed=1" / "summary.json").exists() and not (
        sweep / "seed=1"
    ).exists()
    assert read_study([sweep]).expected == 4
    assert SweepRecord.read(sweep).named == ["schedule", "seed"]


# Characters with a meaning for Hydra, for a shell or in a page.
NAME = """it's 50% [a] "b", {c}=d; $e #f\\g ~é漢"""


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_sweep_runs_in_folder_with_special_characters(root, launcher):
    place = root / NAME
    line = command("-m", "name=s", "seed=1", f"hydra/launcher={launcher}")
    done = forked.run(line, environment(place))
    assert done.returncode == 0, done.stderr
    [run] = find_runs(place / "logs" / "sweeps")
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run.parent / "report.html").is_file() and run.parent.name.startswith("s")


def test_root_with_interpolation_in_name_is_refused(root):
    place = root / "${a}"
    for more in ("-m", "name=s"):
        done = forked.run(command("seed=1", more), environment(place))
        assert done.returncode == 1 and not place.exists()
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
