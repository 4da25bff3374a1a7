"""The report finds the axes that a shipped ablation varies, among all resolved keys."""

import itertools
from pathlib import Path

import pytest

from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.config.identity import flatten_config
from triptych.run.parsing import Estimate, format_value
from triptych.run.read import Run
from triptych.study.axes import find_comparison_axes
from triptych.study.rounds import with_setting

NAMES = sorted(file.stem for file in (CONFIGS / "ablation").glob("*.yaml"))


def composed(name: str, *overrides: str):
    cfg = compose_command("train", [f"ablation={name}", *overrides])
    choices = {
        g: c for g, c in cfg.hydra.runtime.choices.items() if c and not g.startswith("hydra/")
    }
    return to_plain(without_hydra(cfg)), choices, to_plain(cfg.hydra.sweeper)


@pytest.mark.parametrize("name", NAMES)
def test_the_axes_of_an_ablation_are_its_grid(name):
    # Two values of each key tell an axis from keys that change with it; what differs by seed alone
    # is no axis.
    sweeper = composed(name)[2]
    grid = {key: str(values).split(",")[:2] for key, values in sweeper["params"].items()}
    first, *more = grid.pop("seed", ["1"])
    jobs = [(*values, first) for values in itertools.product(*grid.values())]
    runs = []
    for values in [*jobs, *((*jobs[0][:-1], seed) for seed in more)]:
        job = [f"{key}={value}" for key, value in zip([*grid, "seed"], values, strict=True)]
        job = with_setting(job, sweeper["settings"])
        told = dict(override.split("=", 1) for override in job)
        config, choices, _ = composed(name, *job)
        runs.append(
            Run(
                dir=Path("/", *values), status="finished", overrides=told, choices=choices,
                seed=int(told["seed"]), test={"bpd": Estimate(1.0, 0.1, 9)},
                config={k: format_value(v) for k, v in flatten_config(config)},
            )
        )  # fmt: skip
    axes, notes = find_comparison_axes(runs)
    assert {axis.key for axis in axes} == set(grid), axes
    assert [list(axis.values) for axis in axes] == [grid[axis.key] for axis in axes]
    assert not notes
