"""Expand a sweep's grid, name its runs, and choose the seeds and tuned values of each round.

A round is a batch of runs that is started when the results of earlier ones are known.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.identity import AXES, BUNDLES, grid_keys, slug
from triptych.config.keys import check_values, role
from triptych.config.source import group_choices
from triptych.declare import Role
from triptych.errors import UserError
from triptych.run.request import Request, resolve

Job = list[str]  # the overrides of one run
Setting = tuple[str, ...]  # overrides without the seed: a cell of the grid
Point = tuple[str, ...]  # overrides of the tuned keys
# {key that only a sweep over a grid can use: the error message without one}
OF_A_GRID = {
    "until": "needs a sweep; pass settings and seeds, as -m objective=x0,v seed=1,2,3",
    "setting": "needs a sweep; pass -m and an ablation that lists this setting",
}


def grid_jobs(sweeper: Mapping[str, Any], arguments: Sequence[str]) -> list[Job]:
    """Return the overrides of each run of the grid of ``sweeper.params`` and the command line."""
    from triptych.config.hydra_internals import BasicSweeper

    loader = None  # an override glob(x*) needs it to list the choices
    if GlobalHydra.instance().is_initialized():
        loader = GlobalHydra.instance().config_loader()
    fixed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*fixed, *arguments])
    jobs = [*itertools.chain.from_iterable(BasicSweeper.split_arguments(parsed, None))]
    if not jobs:
        raise UserError("-m: a key has no values; pass at least one, as in KEY=A,B")
    return [with_setting(list(job), sweeper.get("settings") or {}) for job in jobs]


def with_setting(job: Job, settings: Mapping[str, Any]) -> Job:
    """Add the overrides that a job's ``setting=NAME`` stands for, if the job lacks their keys."""
    chosen = [override for override in job if override.startswith("setting=")]
    if chosen in ([], ["setting=null"]):
        return job
    name = chosen[0].removeprefix("setting=")
    if name not in settings:
        known = ", ".join(settings) or "none"
        raise UserError(f"setting={name}: no such setting; settings here: {known}")
    typed = set(map(override_key, job))
    added = [override for override in settings[name] if override_key(override) not in typed]
    # Put the setting first: a report names runs by the first of keys that change together.
    return [*chosen, *added, *(override for override in job if override not in chosen)]


def override_key(override: str) -> str:
    """Return the key of an override: "lr" of "+lr=0.1"."""
    return override.lstrip("+~").split("=", 1)[0]


def override_group(override: str) -> str:
    """Return the key of an override without its package: "schedule" of "schedule@x=cosine"."""
    return override_key(override).split("@")[0]


def composed_grid_jobs(config: DictConfig) -> list[Job]:
    """Return the overrides of each run of the grid in a sweep's composed configuration."""
    return grid_jobs(config.hydra.sweeper, list(config.hydra.overrides.task))


def compose_cell(config: DictConfig, job: Sequence[str]) -> DictConfig:
    """Return the configuration of a sweep's run with these overrides."""
    return GlobalHydra.instance().config_loader().load_sweep_config(config, [*job])


class Composer:
    """Composes the runs of a sweep, with Hydra only once for all runs of the same choices.

    Hydra takes 0.1 s for a run; a copy of its result in which other values are set takes 0.005 s.
    """

    def __init__(self, config: DictConfig):
        self.config = config
        self.composed: dict[Setting, DictConfig] = {}  # by the overrides that Hydra has composed

    def compose(self, job: Sequence[str]) -> DictConfig:
        """Return the configuration of the run with these overrides, as ``compose_cell`` does."""
        values = [override for override in job if _sets_value(override)]
        choices = tuple(override for override in job if override not in values)
        if choices not in self.composed:
            self.composed[choices] = compose_cell(self.config, choices)
        cell = copy.deepcopy(self.composed[choices])
        cell.hydra.overrides.task = [*job]
        try:
            for override in OverridesParser.create().parse_overrides(values):
                OmegaConf.update(cell, override.key_or_group, override.value())
        except OmegaConfBaseException:
            return compose_cell(self.config, job)  # raises Hydra's error, which can be explained
        return cell


def _sets_value(override: str) -> bool:
    """Return whether an override sets a value, and does not choose a file, add or delete a key."""
    return not override.startswith(("+", "~")) and not group_choices(override_group(override))


def resolve_cell(cell: DictConfig) -> Request:
    """Resolve a composed run of a sweep; UserError: one of its overrides is invalid."""
    request = resolve(cell, Path(cell.hydra.sweep.dir))
    request.check_overrides()
    return request


def jobs_known_beforehand(config: DictConfig) -> list[Job]:
    """Return the overrides of each run of a sweep; [] if the sweeper chooses them one by one."""
    if not is_grid(config) or is_adaptive(config):
        return []
    return composed_grid_jobs(config)


def cell_name(overrides: Sequence[str], hidden: set[str]) -> str:
    """Return the name of the directory of a job that has these overrides, as Hydra makes it."""
    shown = [
        override for override in filter_overrides(overrides) if override_key(override) not in hidden
    ]
    return slug(",".join(sorted(shown)))


def is_grid(config: DictConfig) -> bool:
    """Return whether the sweeper runs a grid, that is all combinations of the given values."""
    return str(config.hydra.sweeper._target_).endswith("RoundsSweeper")


def is_search(config: DictConfig) -> bool:
    """Return whether Optuna chooses the runs."""
    return "triptych_search" in config.hydra.sweeper._target_


def is_adaptive(config: DictConfig) -> bool:
    """Return whether the sweeper chooses runs by earlier results, as a search or a tuning does."""
    return is_search(config) or bool(config.hydra.sweeper.get("tune"))


def varied_keys(config: DictConfig) -> set[str]:
    """Return the keys and groups that vary within a sweep, those that ``setting`` sets included."""
    if not is_grid(config):  # other sweepers vary all keys that they are given
        return swept_keys(config)
    jobs = composed_grid_jobs(config)
    shared = set.intersection(*map(set, jobs))
    return set(map(override_group, set[str]().union(*jobs) - shared))


def swept_keys(config: DictConfig) -> set[str]:
    """Return the keys with values for the sweeper, in its configuration or the command line."""
    return {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)}


def check_rounds(config: Mapping[str, Any], grid: bool) -> None:
    """Check the values of keys that control a sweep as a whole, such as ``until``.

    ``grid``: whether the runs are a sweep over a grid. UserError: a value is wrong, or needs one.
    """
    check_values({key: config[key] for key in config if role(str(key)) is Role.START})
    if grid:
        return
    for key, fix in OF_A_GRID.items():
        if config.get(key) is not None:
            raise UserError(f"{key}={config[key]}: {fix}")


def settings_and_seeds(jobs: Sequence[Sequence[str]]) -> tuple[list[Setting], list[int]]:
    """Return a grid's settings and seeds, in order; UserError: a setting lacks a seed."""
    overrides = dict.fromkeys(itertools.chain.from_iterable(jobs))
    seeds = [text.removeprefix("seed=") for text in overrides if text.startswith("seed=")]
    settings = list(count_runs_by_setting(jobs))
    if not seeds or not all(map(str.isdigit, seeds)) or len(jobs) != len(seeds) * len(settings):
        raise UserError(
            "seed: this sweep needs the same seeds for each setting; pass them, as seed=1,2,3"
        )
    return settings, list(map(int, seeds))


def count_runs_by_setting(jobs: Sequence[Sequence[str]]) -> Counter[Setting]:
    """Count the runs of each setting of a grid, in order of appearance."""
    return Counter(tuple(o for o in job if not o.startswith("seed=")) for job in jobs)


def split_by_fit(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Split a grid's runs into those that train a network, and those that reuse its weights."""
    first: dict[Setting, Job] = {}
    later = []
    for job in jobs:
        fit = tuple(override for override in job if _affects_training(override))
        if fit in first:
            later.append(job)
        else:
            first[fit] = job
    return [*first.values()], later


def _affects_training(override: str) -> bool:
    """Return whether an override may change the trained network, not only sampling from it."""
    key = override_group(override)
    return key != "setting" and role(key) is not Role.DRAWING


def print_plan(config: DictConfig, jobs: Sequence[Job]) -> None:
    """Print the estimated cost of a grid; UserError: a search, whose runs are not known yet."""
    from triptych.study.plan import describe_cost

    if not jobs:
        raise UserError(
            "plan=true: not possible for a search, which chooses its runs one after another; "
            "leave it out"
        )
    runs = count_runs_by_setting(jobs)
    fits = count_runs_by_setting(split_by_fit(jobs)[0])
    planned, composer = [], Composer(config)
    for setting, name in setting_names([*runs]).items():
        resolved = resolve_cell(composer.compose(setting)).config
        planned.append((name or "all", runs[setting], fits[setting], resolved))
    if config.get("until"):
        print(
            "until=decided: this plan counts only the first seeds; more may follow, up to "
            f"{config.max_seeds} per setting in all"
        )
    print("\n".join(describe_cost(planned)))


def setting_names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Name each setting by the overrides that not all settings share; name a single one by all."""
    shared = set[str]()
    if len(settings) > 1:
        shared = set.intersection(*map(set, settings))
    named = {}
    for setting in settings:
        named[setting] = ",".join(o for o in setting if o not in shared and _is_axis(o))
    return named


def _is_axis(override: str) -> bool:
    """Return whether an override may distinguish settings, not just where or how they run."""
    key = override_group(override)
    return key in BUNDLES or role(key) in AXES


def seed_rounds(first_seeds: Sequence[int], max_seeds: int) -> list[list[int]]:
    """Return all seeds up to each round: ``first_seeds``, then each time half as many more.

    For example 3, 5, 8 and 12 seeds, with ``max_seeds=12``. The rounds are few, as each one lowers
    the level of the tests.
    UserError: fewer than two first seeds, or more than ``max_seeds``.
    """
    if not 2 <= len(first_seeds) <= max_seeds:
        raise UserError(
            f"max_seeds={max_seeds}: until=decided cannot start with {len(first_seeds)} seed(s); "
            f"pass 2 to {max_seeds} seeds, as seed=1,2,3"
        )
    fresh = range(max(first_seeds) + 1, max(first_seeds) + 1 + max_seeds - len(first_seeds))
    seeds = [*first_seeds, *fresh]
    return [seeds[:n] for n in round_sizes(len(first_seeds), max_seeds)]


def round_sizes(first: int, most: int) -> list[int]:
    """Return the number of seeds at each look: `first`, then 1.5 times as many, up to `most`."""
    sizes = [first]
    while sizes[-1] < most:
        sizes.append(min(most, sizes[-1] + math.ceil(sizes[-1] / 2)))
    return sizes


def choose_point(
    bounds: Mapping[tuple[Setting, Point], Sequence[float]],
) -> tuple[Point, dict[Setting, Point]]:
    """Return the best tuned point for all settings together, and {setting: its own best point}.

    ``bounds``: the validation bounds (lower is better) of all seeds, by setting and point. A bound
    that is not finite excludes its point. UserError: no point is left.
    """
    means: dict[Setting, dict[Point, float]] = {}
    means_by_point: dict[Point, list[float]] = {}
    for (setting, point), values in bounds.items():
        mean = _mean_or_infinity(values)
        means.setdefault(setting, {})[point] = mean
        means_by_point.setdefault(point, []).append(mean)
    best = {setting: _lowest_point(means[setting], ",".join(setting)) for setting in means}
    together = {point: _mean_or_infinity(values) for point, values in means_by_point.items()}
    return _lowest_point(together, "all settings"), best


def _lowest_point(bounds: Mapping[Point, float], name: str) -> Point:
    """Return the point of the lowest bound; UserError: none is finite."""
    point = min(bounds, key=lambda point: bounds[point])
    if math.isinf(bounds[point]):
        raise UserError(
            f"tuning: {name} has no value with a finite validation bound for every seed"
        )
    return point


def _mean_or_infinity(values: Sequence[float]) -> float:
    """Return the mean of values; infinity if one of them is not finite."""
    if not all(map(math.isfinite, values)):
        return math.inf
    return sum(values) / len(values)
