"""Check the cells and the launcher of a sweep before anything begins."""

import shutil
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys, warm_up_line
from triptych.config.identity import check_cores, grid_keys
from triptych.config.keys import find_key
from triptych.config.source import choices_of
from triptych.declare import fits
from triptych.errors import UserError
from triptych.run.inputs import check_files
from triptych.run.prepare import resolve_composed
from triptych.run.untrusted import check_initial
from triptych.study import rounds


def check_cells(config: DictConfig, jobs: Sequence[list[str]], begun: bool) -> list[str]:
    """Refuse a sweep none of whose cells can run, or one with a value that no cell can have (UserError).

    Each value is looked at in the first cell that has it; cells in which it only does not go with the others
    fail alone. First and last cell of a grid differ in every axis; those between are looked at if both are
    refused. ``begun``: whether a cell has a result or a checkpoint. Returns what each such cell prints of its
    warm-up, whose own stderr is its train.log.
    """
    lines = dict[str, None]()
    loader, refusals, known = GlobalHydra.instance().config_loader(), [], {""}
    for job in jobs:
        fresh = OverridesParser.create().parse_overrides([one for one in job if one not in known])
        length = ",".join(o for o in job if rounds.key_of(o).startswith(("lr_schedule.", "trainer.max_")))
        new_length = length not in known  # each pair of a length and a warm-up
        known.update([*job, length])
        doubtful = any(map(_is_doubtful, fresh))
        if doubtful or new_length or any(choices_of(o.key_or_group) for o in fresh):
            cell = loader.load_sweep_config(config, job)  # which refuses a key of another choice
            lines[_warm_up(cell)] = None
        if doubtful:
            check_keys(cell, cell.hydra)
    for job in [*jobs[:1], *jobs[1:][-1:], *jobs[1:-1]]:
        try:
            plain = resolve_composed(loader.load_sweep_config(config, job))
            check_initial(plain, begun)
            lines[_warm_up(OmegaConf.create(plain))] = None
            break
        except (UserError, HydraException, OmegaConfBaseException) as error:
            refusals.append(error)
    else:
        if refusals:
            raise refusals[0]
    but, guidance = rounds.differing(config), config.get("guidance") or {}
    if "guidance" not in but and not {"classifier", "weak"} & {*guidance}:
        but.add("guide")  # as of an ablation that names one for a guidance that is not chosen
    check_files(config, but)
    return [*filter(None, lines)]


def probe_jobs(config: DictConfig) -> list[list[str]]:
    """Return jobs with each value that a sweep may try whose cells are not known beforehand."""
    sweeper = config.hydra.sweeper
    if sweeper.get("tune"):
        points = rounds.grid({"params": sweeper.tune}, [])
        return [[*job, *point] for job in rounds.jobs_of(config) for point in points]
    if "triptych_search" in sweeper._target_:
        from hydra_plugins.triptych_search._space import probe_jobs as probes  # Optuna, which may be missing

        return probes(sweeper.params or {}, config.hydra.overrides.task)
    return []  # an adaptive sweeper of the user's own


def _warm_up(cell: DictConfig) -> str:
    """Return a cell's line on its warm-up, if it trains for a number of steps."""
    keys = "trained", "model._target_", "trainer.max_epochs", "trainer.max_steps", "lr_schedule.warmup_steps"
    with suppress(OmegaConfBaseException):  # of values that are refused later
        trained, model, epochs, steps, warmup = (OmegaConf.select(cell, key) for key in keys)
        idle = trained or epochs or str(model).endswith((".OracleModel", ".Cascade"))
        if type(steps) is type(warmup) is int and not idle:
            return warm_up_line(warmup, steps)
    return ""


def _is_doubtful(override: Override) -> bool:
    """Return whether an override may be refused in every cell: added, or of undeclared type."""
    key = override.key_or_group
    known = override.is_delete() or choices_of(key) or fits(find_key(key).kind, override.value())
    return override.is_add() or not known


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for what SLURM would refuse, or wait for, much later."""
    if str(config.hydra.launcher._target_).endswith("RayLauncher"):
        from ray.job_config import JobConfig

        # else its workers would look for each module in the folder where the command was typed first
        # Ray has no option for it
        JobConfig._runtime_env_has_working_dir = lambda _: True  # type: ignore[method-assign]
    if not on_slurm(config):
        check_cores(config, "cores", "threads")
        return
    # a job's tasks, requested once for a whole sweep, are the trainer's processes
    fixed = {"trainer", "trainer.devices", "trainer.num_nodes"}
    if swept := {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)} & fixed:
        raise UserError(f"{min(swept)}: cannot vary within a SLURM sweep; start a sweep for each value")
    if not shutil.which("srun"):  # which submitit asks for once the sweep has begun
        raise UserError("hydra/launcher: no SLURM here (srun is missing); start the sweep on a login node")


def on_slurm(config: DictConfig) -> bool:
    """Return whether its jobs are SLURM's."""
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")
