"""Check a sweep's command as a whole, and name the sweep's directory."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from triptych.config.check import check_keys, check_optimized_metric
from triptych.config.identity import quote, shared_overrides, sweep_name
from triptych.config.keys import check_values
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.sweep_record import SweepRecord
from triptych.study import rounds

# Keys of Hydra that would name a run's directory otherwise than the sweep plans it.
DIRNAME = "hydra.job.config.override_dirname"
NAMING_KEYS = ("hydra.sweep.subdir", f"{DIRNAME}.kv_sep", f"{DIRNAME}.item_sep")


def check_command(config: DictConfig) -> None:
    """Check the settings of a sweep as a whole: launch, directory, keys, tuning and search.

    UserError: one of them cannot be used.
    """
    if processes.launch_id():
        raise UserError(
            "-m: a sweep starts its processes itself; use trainer=ddp without torchrun or srun"
        )
    sweeper = config.hydra.sweeper
    typed_for_hydra = config.hydra.overrides.hydra
    if not config.hydra.sweep.dir:
        raise UserError("hydra.sweep.dir=: must be a directory; leave it out for the default one")
    for key in map(rounds.override_key, typed_for_hydra):
        if key in NAMING_KEYS:
            raise UserError(f"{key}: a run's directory follows from its overrides; leave it out")
    check_keys(config, config.hydra)
    check_values(OmegaConf.to_container(sweeper, resolve=True), path="hydra.sweeper")
    if str(sweeper._target_).endswith("BasicSweeper"):
        raise UserError("hydra/sweeper=basic: the default sweeper runs the same grid; leave it out")
    rounds.check_rounds(config, grid=rounds.is_grid(config))
    if sweeper.get("tune"):
        _check_tuning_overrides(config)
    if rounds.is_search(config):
        check_optimized_metric(config)
        if find_spec("optuna") is None:
            raise UserError("hparams_search: not installed; pip install 'triptych[search]'")


def _check_tuning_overrides(config: DictConfig) -> None:
    """Raise UserError for overrides that contradict the tuning of a sweep."""
    if config.get("until"):
        raise UserError("until=decided: not supported together with tuning; use until=null")
    typed = set(map(rounds.override_key, config.hydra.overrides.task))
    typed_and_tuned = typed & {*config.hydra.sweeper.tune, "test"}
    if typed_and_tuned:
        raise UserError(
            f"{min(typed_and_tuned)}: this sweep's tuning sets it; leave it out, or add "
            "hydra.sweeper.tune=null"
        )


def name_directory(config: DictConfig, scale_keys: Sequence[str]) -> None:
    """Set the sweep's directory, and the keys that the names of its cells leave out.

    Both are appended to the typed overrides, because every launcher passes overrides to its jobs.
    """
    typed = config.hydra.overrides.hydra
    root = Path(config.hydra.sweep.dir).absolute()
    if "hydra.sweep.dir" in map(rounds.override_key, typed):
        # A run of its own seed would resolve ${seed} to another directory.
        typed.append(f"hydra.sweep.dir={quote(str(root))}")
        return
    root /= sweep_name(config)
    config.hydra.sweep.dir = str(root)
    # Overrides that all cells share are in the sweep's name, so the cells' names leave them out.
    # A key that had several values in an earlier command stays in the cells' names.
    shared = {*shared_overrides(config)} - {*SweepRecord.read(root).named}
    naming = config.hydra.job.config.override_dirname
    naming.exclude_keys = [*naming.exclude_keys, *scale_keys, *sorted(shared)]
    quoted = ",".join(f"'{key}'" for key in naming.exclude_keys)
    typed.append(f"hydra.sweep.dir={quote(str(root))}")
    typed.append(f"{DIRNAME}.exclude_keys=[{quoted}]")
