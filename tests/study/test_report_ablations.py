"""What a shipped ablation varies is what its report finds, among all keys of its resolved configurations."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from triptych.config.check import CONFIGS
from triptych.config.identity import leaves
from triptych.config.names import register_resolvers
from triptych.run.entries import Estimate
from triptych.run.parsing import format_value
from triptych.run.read import Run
from triptych.study.axes import find_axes
from triptych.study.rounds import with_setting

NAMES = sorted(file.stem for file in (CONFIGS / "ablation").glob("*.yaml"))


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", [f"ablation={name}", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    choices = {g: c for g, c in cfg.hydra.runtime.choices.items() if c and not g.startswith("hydra/")}
    sweeper = OmegaConf.to_container(cfg.hydra.sweeper)
    with open_dict(cfg):
        del cfg["hydra"]
    return OmegaConf.to_container(cfg, resolve=True), choices, sweeper


@pytest.mark.parametrize("name", NAMES)
def test_the_axes_of_an_ablation_are_its_grid(name):
    register_resolvers()
    # two values of each tell an axis from what changes with it; what differs with the seed alone is no axis
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
                config={k: format_value(v) for k, v in leaves(config)},
            )
        )  # fmt: skip
    axes, notes = find_axes(runs)
    assert {axis.key for axis in axes} == set(grid), axes
    assert [list(axis.values) for axis in axes] == [grid[axis.key] for axis in axes]
    assert not notes
