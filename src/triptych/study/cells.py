"""Which cells a sweep has, and what their directories are called."""

from collections import Counter
from collections.abc import Sequence

from omegaconf import DictConfig

from triptych.config.names import grid_keys, slug
from triptych.study.rounds import grid


def is_grid(config: DictConfig) -> bool:
    """Whether all cells are known beforehand, as a product of values."""
    return str(config.hydra.sweeper._target_).endswith(("BasicSweeper", "RoundsSweeper"))


def expected_cells(config: DictConfig) -> list[str]:
    """Names of the directories that a grid sweep will make, in order; empty for adaptive sweepers."""
    sweeper = config.hydra.sweeper
    if not is_grid(config) or sweeper.get("tune"):
        return []
    return [cell_name(config, job) for job in grid(sweeper, list(config.hydra.overrides.task))]


def differing(config: DictConfig) -> set[str]:
    """The keys and groups that cells of a sweep differ in; of settings, those that they stand for."""
    sweeper = config.hydra.sweeper
    if not is_grid(config):  # an adaptive sweeper's are those that it is given
        return {*(sweeper.get("params") or {}), *grid_keys(config)}
    jobs = [set(job) for job in grid(sweeper, list(config.hydra.overrides.task))]
    times = Counter(o for job in jobs for o in job)
    return {o.lstrip("+~").split("=")[0].split("@")[0] for o, n in times.items() if n < len(jobs)}


def cell_name(config: DictConfig, overrides: Sequence[str]) -> str:
    """The name of the directory of the job that has these overrides, as Hydra will make it."""
    from hydra.core.utils import filter_overrides

    hidden = set(config.hydra.job.config.override_dirname.exclude_keys)
    shown = [o for o in filter_overrides(overrides) if o.lstrip("+~").split("=")[0] not in hidden]
    return slug(",".join(sorted(shown)))
