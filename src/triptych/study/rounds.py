"""The grid of a sweep, its directories, and what one in rounds decides: the next seeds, the best value."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import filter_overrides
from hydra.errors import HydraException
from omegaconf import DictConfig

from triptych.config.identity import AXES, BUNDLES, grid_keys, slug
from triptych.config.keys import check_values, role
from triptych.declare import Role
from triptych.errors import UserError
from triptych.run.prepare import resolve_composed

AXIS = 10_000  # values of one key, at most
Setting = tuple[str, ...]  # overrides without the seed: a cell of the grid
Point = tuple[str, ...]  # overrides of what is tuned


def grid(sweeper: Mapping[str, Any], arguments: Sequence[str]) -> list[list[str]]:
    """Return overrides of each run of a grid, ``sweeper.params`` and the command line, as Hydra has it."""
    from triptych.config.hydra_internals import BasicSweeper

    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # of which glob(x*) asks for choices
    fixed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*fixed, *arguments])
    for override in filter(Override.is_sweep_override, parsed):
        check_values_of(override)
    settings = sweeper.get("settings") or {}
    jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    return [with_setting(job, settings) for job in jobs]


def check_values_of(override: Override) -> None:
    """Raise UserError for an axis without values, with one of them twice, or with a range that is none."""
    key, line = override.key_or_group, override.input_line
    try:
        values = list(map(str, itertools.islice(override.sweep_iterator(), AXIS + 1)))
    except (HydraException, ValueError, ZeroDivisionError) as error:
        problem = error if isinstance(error, ValueError) else "no list of values"
        raise UserError(f"{line}: {problem}; list the values, as in {key}=A,B") from error
    if not values:
        raise UserError(f"{line}: no values; list one or more, as in {key}=A,B")
    if len(values) > AXIS:
        raise UserError(f"{line}: more than {AXIS} values; a sweep has a run for each")
    if twice := next((value for value in values if values.count(value) > 1), ""):
        raise UserError(f"{line}: {twice} is listed twice; a sweep has one run for each value")


def with_setting(job: list[str], settings: Mapping[str, Any]) -> list[str]:
    """Return ``job`` with what its ``setting=NAME`` stands for, but for keys that the job sets itself."""
    name = next((o.split("=", 1)[1] for o in job if o.startswith("setting=")), None)
    if name in (None, "null"):
        return job
    if name not in settings:
        expected = f"must be one of {', '.join(settings)}" if settings else "choose an ablation that lists it"
        raise UserError(f"setting={name}: no such setting; {expected}")
    typed = set(map(key_of, job))
    brought = [o for o in settings[name] if key_of(o) not in typed]
    # the name first: a report names runs by the first of the keys that change together
    return [f"setting={name}", *brought, *(o for o in job if not o.startswith("setting="))]


def key_of(override: str) -> str:
    """Return the key of an override: "lr" of "+lr=0.1"."""
    return override.lstrip("+~").split("=", 1)[0]


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each run of the grid that a composed configuration asks for."""
    return grid(config.hydra.sweeper, list(config.hydra.overrides.task))


def known_jobs(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each job that is known beforehand."""
    known = is_grid(config) and not config.hydra.sweeper.get("tune")
    return jobs_of(config) if known else []


def cell_name(overrides: Sequence[str], hidden: set[str]) -> str:
    """Return the name of the directory of a job that has these overrides, as Hydra makes it."""
    return slug(",".join(sorted(o for o in filter_overrides(overrides) if key_of(o) not in hidden)))


def is_grid(config: DictConfig) -> bool:
    """Return whether all cells are known beforehand, as a product of values."""
    return str(config.hydra.sweeper._target_).endswith(("BasicSweeper", "RoundsSweeper"))


def differing(config: DictConfig) -> set[str]:
    """Return the keys and groups that cells of a sweep differ in; of settings, those that they stand for."""
    if not is_grid(config):  # an adaptive sweeper's are those that it is given
        return {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)}
    jobs = [set(job) for job in jobs_of(config)]
    times = Counter(o for job in jobs for o in job)
    return {key_of(o).split("@")[0] for o, n in times.items() if n < len(jobs)}


def check_rounds(config: Mapping[str, Any], grid: bool) -> None:
    """Refuse values of keys that are about a sweep as a whole; ``grid``: whether it is one over a grid."""
    check_values({key: config[key] for key in config if role(str(key)) is Role.START})
    until = config.get("until")
    if until and not grid:
        raise UserError(
            f"until={until}: needs a sweep over settings and seeds, as -m objective=x0,v seed=1,2,3"
        )
    if config.get("setting") is not None and not grid:
        raise UserError(f"setting={config['setting']}: for a sweep of an ablation that lists it, with -m")


def settings_and_seeds(jobs: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    """Return a grid's settings and its seeds, in order; UserError without seeds that all settings have."""
    seeds = list(dict.fromkeys(o.split("=", 1)[1] for job in jobs for o in job if o.startswith("seed=")))
    settings = settings_of(jobs)
    if not seeds or not all(s.isdigit() for s in seeds) or len(jobs) != len(seeds) * len(settings):
        raise UserError("seed: a sweep in rounds needs seeds, as in seed=1,2,3")
    return [list(setting) for setting in settings], [int(seed) for seed in seeds]


def settings_of(jobs: Sequence[Sequence[str]]) -> Counter[Setting]:
    """Count the runs of each setting of a grid, in order of appearance."""
    return Counter(tuple(o for o in job if not o.startswith("seed=")) for job in jobs)


def fits_first(jobs: Sequence[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Part a grid's runs: of those that train the same network the first, and the others, which take it."""
    first: dict[Setting, list[str]] = {}
    later = []
    for job in jobs:
        keys = {o: key_of(o).split("@")[0] for o in job}
        fit = tuple(o for o, key in keys.items() if key != "setting" and role(key) is not Role.DRAWING)
        if first.setdefault(fit, job) is not job:
            later.append(job)
    return [*first.values()], later


def print_plan(config: DictConfig, jobs: Sequence[list[str]]) -> None:
    """Print what a grid of runs would cost; UserError for a search, whose runs are not known."""
    if not jobs:
        raise UserError("plan=true: for one run or a grid of runs; a search chooses its runs as it goes")
    runs, fits = settings_of(jobs), settings_of(fits_first(jobs)[0])
    loader = GlobalHydra.instance().config_loader()
    configurations = [resolve_composed(loader.load_sweep_config(config, [*setting])) for setting in runs]
    from triptych.study.plan import plan

    if config.get("until"):
        print(f"until=decided: the first seeds are counted, of at most {config.max_seeds} a setting")
    named = names([*runs])
    planned = zip(runs.items(), configurations, strict=True)
    print("\n".join(plan([(named[one] or "all", n, fits[one], plain) for (one, n), plain in planned])))


def names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Name each setting by the overrides that not all of them share; by all of them if it is the only one."""
    shared = set.intersection(*map(set, settings)) if len(settings) > 1 else set()
    return {setting: ",".join(o for o in setting if o not in shared and _is_axis(o)) for setting in settings}


def _is_axis(override: str) -> bool:
    """Return whether an override may be what runs differ in: not one of how, where or when they run."""
    key = key_of(override).split("@")[0]
    return key in BUNDLES or role(key) in AXES


def seeds_after(first: Sequence[int], most: int) -> list[list[int]]:
    """Return the seeds of each round: those given, then half as many again, until there are ``most``.

    Few rounds, because each look has its price: 3, 5, 8, 12 for three seeds and 12 at most. UserError: fewer
    than two seeds to begin with, or more than ``most``.
    """
    if len(first) < 2 or len(first) > most:
        begins = f"begins with 2 to {most} seeds, not {len(first)}"
        raise UserError(f"max_seeds={most}: a sweep until=decided {begins}")
    every = [*first, *range(max(first) + 1, max(first) + 1 + most - len(first))]
    rounds = [list(first)]
    while (n := len(rounds[-1])) < most:
        rounds.append(every[: n + math.ceil(n / 2)])
    return rounds


def choose_point(
    bounds: Mapping[tuple[Setting, Point], Sequence[float]],
) -> tuple[Point, dict[Setting, Point]]:
    """Return the point that is best for all settings together, and each one's own, by the mean over seeds.

    ``bounds``: validation bounds, lower is better, of each setting at each point; one that is not finite
    rules its point out. UserError: a setting, or all together, has no such point.
    """
    mean = {cell: _mean(values) for cell, values in bounds.items()}
    settings = list(dict.fromkeys(setting for setting, _ in bounds))
    points = list(dict.fromkeys(point for _, point in bounds))
    together = {point: _mean([mean[setting, point] for setting in settings]) for point in points}
    equal = min(points, key=lambda point: together[point])
    best = {s: min(points, key=lambda point: mean[s, point]) for s in settings}
    lost = [",".join(s) for s, point in best.items() if not math.isfinite(mean[s, point])]
    if lost or not math.isfinite(together[equal]):
        none = "no value at which every seed gave a finite validation bound"
        raise UserError(f"tuning: {[*lost, 'all settings'][0]} has {none}")
    return equal, best


def _mean(values: Sequence[float]) -> float:
    """Average; infinity where a value is missing or not finite."""
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.inf
