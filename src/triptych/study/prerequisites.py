"""Check the cells and the launcher of a sweep before anything begins."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys, warm_up_warning
from triptych.config.explain import explain
from triptych.config.identity import check_cores
from triptych.errors import Refusals, UserError
from triptych.records import Config
from triptych.run.inputs import check_files
from triptych.run.untrusted import check_init_from
from triptych.study import rounds
from triptych.study.formatting import count_noun


def check_cells(config: DictConfig, jobs: Sequence[Sequence[str]], has_begun: bool) -> list[Config]:
    """Return the resolved configuration of each setting of a sweep.

    UserError: some runs cannot start; it has a line for each cause. ``has_begun``: whether a run
    has a result or a checkpoint.
    """
    composer = rounds.Composer(config)
    configs, causes = _resolve(composer, rounds.count_runs_by_setting(jobs), has_begun)
    if not causes:
        _, causes = _resolve(composer, _count_runs_by_seed(jobs), has_begun)
    if causes:
        raise Refusals(_refusal_lines(causes, len(jobs)))
    check_files(config, rounds.varied_keys(config))
    return configs


def _resolve(
    composer: rounds.Composer, counts: Mapping[rounds.Setting, int], has_begun: bool
) -> tuple[list[Config], Counter[str]]:
    """Return configurations, and the number of runs with each cause why one is refused.

    ``counts``: {overrides: the number of runs for which they stand}.
    """
    configs = []
    causes = Counter[str]()
    for overrides, count in counts.items():
        try:
            cell = composer.compose(overrides)
            check_keys(cell, cell.hydra)
            resolved = rounds.resolve_cell(cell).config
            if not has_begun:
                check_init_from(resolved)
            configs.append(resolved)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            cause = str(error) if isinstance(error, UserError) else explain(error, "train")
            causes[cause] += count
    return configs, causes


def _count_runs_by_seed(jobs: Sequence[Sequence[str]]) -> Counter[rounds.Setting]:
    """Count the runs of each seed, by the overrides of the first of them."""
    first: dict[str, rounds.Setting] = {}
    counts = Counter[rounds.Setting]()
    for job in jobs:
        seed = ",".join(override for override in job if override.startswith("seed="))
        counts[first.setdefault(seed, tuple(job))] += 1
    return counts


def _refusal_lines(causes: Counter[str], n_runs: int) -> list[str]:
    """Return a line for each cause, with the number of runs unless it is that of all runs."""
    lines = []
    for cause, count in causes.most_common():
        if count == n_runs:
            lines.append(cause)
        else:
            lines.append(f"{cause} ({count} of {count_noun(n_runs, 'run')})")
    return lines


def warm_up_line(configs: Sequence[Config]) -> str:
    """Return a warning if the whole training of a setting is warm-up, else "".

    The run itself writes the warning only to its ``train.log``.
    """
    for config in configs:
        warmup = config["lr_schedule"].get("warmup_steps", 0)
        warning = warm_up_warning(warmup, config["trainer"]["max_steps"] or math.inf)
        if warning:
            return warning
    return ""


def probe_jobs(config: DictConfig) -> list[list[str]]:
    """Return jobs that contain each value that an adaptive sweep may try; [] for other sweeps."""
    sweeper = config.hydra.sweeper
    if sweeper.get("tune"):
        points = rounds.grid_jobs({"params": sweeper.tune}, [])
        return [[*job, *point] for job in rounds.composed_grid_jobs(config) for point in points]
    if rounds.is_search(config):
        # Imports Optuna, which may be missing.
        from hydra_plugins.triptych_search import _space

        return _space.probe_jobs(sweeper.params or {}, config.hydra.overrides.task)
    return []  # a user-supplied adaptive sweeper


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for settings with which SLURM or Ray would fail or wait much later."""
    if str(config.hydra.launcher._target_).endswith("RayLauncher"):
        _hide_working_directory()
        _check_accelerator(config)
    if not uses_slurm(config):
        check_cores(config, "cores", "threads")
        return
    # SLURM starts one task per process of the trainer. The number is requested once per sweep.
    fixed = rounds.swept_keys(config) & {"trainer", "trainer.devices", "trainer.num_nodes"}
    if fixed:
        raise UserError(
            f"{min(fixed)}: cannot vary within a SLURM sweep; start a sweep for each value"
        )
    _check_accelerator(config)


def _check_accelerator(config: DictConfig) -> None:
    """Raise UserError if "auto" leaves open whether jobs on other machines request GPUs."""
    if config.trainer.accelerator == "auto":
        raise UserError(
            "trainer.accelerator=auto: does not say whether the jobs request GPUs; "
            "pass trainer.accelerator=gpu or trainer.accelerator=cpu"
        )


def _hide_working_directory() -> None:
    """Keep Ray's workers from importing modules of the folder where the command was typed.

    Ray has no option for it.
    """
    from ray.job_config import JobConfig

    JobConfig._runtime_env_has_working_dir = lambda _: True  # type: ignore[method-assign]


def uses_slurm(config: DictConfig) -> bool:
    """Return whether the sweep's launcher submits its jobs to SLURM."""
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")
