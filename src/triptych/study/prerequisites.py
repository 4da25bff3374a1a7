"""Check the cells and the launcher of a sweep before anything begins."""

import math
from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys, warm_up_warning
from triptych.config.identity import check_cores
from triptych.errors import UserError
from triptych.run.inputs import check_files
from triptych.run.processes import check_cpu_processes
from triptych.run.untrusted import check_init_from
from triptych.study import rounds


def check_cells(config: DictConfig, jobs: Sequence[list[str]], has_begun: bool) -> str:
    """Raise UserError if no cell of a sweep can run, or if one of its values cannot be used.

    Each value is tested in the first cell that has it. A cell whose values contradict one another
    fails alone, when it runs. ``has_begun``: whether a cell has a result or a checkpoint.

    Return the first warning that a cell has more processes than cores, or that its whole training
    is warm-up, or "". The run itself writes the warning only to its ``train.log``.
    """
    known, warning = set[str](), ""
    for job in jobs:
        if not known.issuperset(job):
            cell = rounds.compose_cell(config, job)
            check_keys(cell, cell.hydra)
            known.update(job)
            processes = ""
            if not uses_slurm(config):  # its nodes have other cores
                processes = check_cpu_processes(cell.trainer)
            warmup = cell.lr_schedule.get("warmup_steps", 0)
            warning = (
                warning or processes or warm_up_warning(warmup, cell.trainer.max_steps or math.inf)
            )
    _check_any_resolves(config, jobs, has_begun)
    check_files(config, rounds.varied_keys(config))
    return warning


def _check_any_resolves(config: DictConfig, jobs: Sequence[list[str]], has_begun: bool) -> None:
    """Raise the first cell's error if the configuration of no cell can be resolved."""
    refusals: list[Exception] = []
    for job in jobs:
        try:
            request = rounds.resolve_cell(config, job)
            if not has_begun:
                check_init_from(request.config)
            return
        except (UserError, HydraException, OmegaConfBaseException) as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


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
