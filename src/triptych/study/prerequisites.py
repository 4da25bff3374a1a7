"""Check the cells and the launcher of a sweep before anything begins."""

import math
from collections import Counter
from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys, warm_up_warning
from triptych.config.explain import explain
from triptych.config.identity import check_cores
from triptych.errors import Refusals, UserError
from triptych.records import Config
from triptych.run.inputs import check_files
from triptych.run.processes import check_cpu_processes
from triptych.run.untrusted import check_init_from
from triptych.study import rounds
from triptych.study.formatting import count_noun


def check_cells(config: DictConfig, jobs: Sequence[Sequence[str]], has_begun: bool) -> list[Config]:
    """Return the resolved configuration of each setting of a sweep.

    UserError: some runs cannot start; it has a line for each cause. ``has_begun``: whether a run
    has a result or a checkpoint.
    """
    composer = rounds.Composer(config)
    settings = rounds.count_runs_by_setting(jobs)
    configs = []
    causes = Counter[str]()
    for setting, count in settings.items():
        try:
            cell = composer.compose(setting)
            check_keys(cell, cell.hydra)
            resolved = rounds.resolve_cell(cell).config
            if not has_begun:
                check_init_from(resolved)
            _processes_line(config, resolved)
            configs.append(resolved)
        except UserError as error:
            causes[str(error)] += count
        except (HydraException, OmegaConfBaseException) as error:
            causes[explain(error, "train")] += count
    if causes:
        total = count_noun(len(jobs), "run")
        raise Refusals([f"{cause} ({n} of {total})" for cause, n in causes.most_common()])
    for seed in dict.fromkeys(override for job in jobs for override in job):
        if seed.startswith("seed="):
            rounds.resolve_cell(composer.compose([*next(iter(settings)), seed]))
    check_files(config, rounds.varied_keys(config))
    return configs


def first_warning(config: DictConfig, configs: Sequence[Config]) -> str:
    """Return a warning if a setting has more processes than cores or trains in warm-up alone.

    It is "" if there is none. The run itself writes the warning only to its ``train.log``.
    """
    for resolved in configs:
        warmup = resolved["lr_schedule"].get("warmup_steps", 0)
        warning = _processes_line(config, resolved) or warm_up_warning(
            warmup, resolved["trainer"]["max_steps"] or math.inf
        )
        if warning:
            return warning
    return ""


def _processes_line(config: DictConfig, resolved: Config) -> str:
    """Return ``check_cpu_processes`` of a setting; "" with SLURM, whose nodes have other cores."""
    if uses_slurm(config):
        return ""
    return check_cpu_processes(resolved["trainer"])


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
