"""Check and prepare a single run, from the command line or from Python."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from triptych.config.identity import check_cores
from triptych.errors import UserError
from triptych.records import Config
from triptych.run import processes
from triptych.run.directory import RunDirectory
from triptych.run.inputs import check_files
from triptych.run.prepare import check_plan, has_run, plan_composed, prepare, resolve_composed
from triptych.run.read import find_runs, is_run

SWEEP_GROUPS = ("ablation", "paper", "hparams_search")
# Keys that only a sweep reads, with their values in a single run.
SWEEP_KEYS = {"until": None, "setting": None, "scale": "small"}


def check_single(config: DictConfig) -> Config:
    """Return a composed run's resolved configuration; UserError if it cannot be run."""
    check_no_sweep(config)
    check_place(config)
    plain = resolve_composed(config)
    check_cores(plain, "cores", "threads")
    if RunDirectory(config.hydra.run.dir).status != "finished":
        check_guide(plain)
        check_files(OmegaConf.create(plain))
    return plain


def check_no_sweep(config: DictConfig) -> None:
    """Refuse groups and keys that only a sweep reads."""
    for key, value in SWEEP_KEYS.items():
        if config.get(key, value) != value:
            raise UserError(f"{key}={config[key]}: only a sweep reads it; add -m, or leave it out")
    for group in SWEEP_GROUPS:
        choice = config.hydra.runtime.choices.get(group)
        if choice not in (None, "null"):
            raise UserError(f"{group}={choice}: settings to compare are a sweep's, which needs -m")


def check_place(config: DictConfig) -> None:
    """Refuse a directory that several runs or processes would share."""
    if processes.launch() and not config.name:
        raise UserError(
            "name=null: a name is needed here, so that all processes share one directory"
        )
    if not config.hydra.run.dir:
        raise UserError("hydra.run.dir: must be a directory; leave it out for one of its own")
    home = Path(config.hydra.run.dir)
    if any(is_run(folder) for folder in find_runs(home) if folder != home):
        raise UserError(f"hydra.run.dir={home}: holds runs; choose a directory of its own")


def check_guide(plain: Config) -> None:
    """Refuse guidance that needs a checkpoint if none is named."""
    guidance = plain.get("guidance") or {}
    if any(guidance.get(key, "unused") is None for key in ("classifier", "weak")):
        fix = "as in guide=.../checkpoints/last.ckpt"
        raise UserError(f"guide=null: this guidance needs a checkpoint, {fix}")


def check_run_there(config: DictConfig, plain: Config) -> None:
    """Refuse a directory that holds another run, as ``prepare`` would; nothing is written."""
    run = RunDirectory(config.hydra.run.dir)
    if has_run(run) and not config.force:
        check_plan(run, plan_composed(run, config), plain)


def prepare_run(cfg: DictConfig, hydra: DictConfig, folder: Path) -> RunDirectory:
    """Prepare the directory of a composed run on rank 0; the other ranks wait for it.

    ``hydra`` is Hydra's node of the composed configuration. Raises the errors of ``prepare``.
    """
    if processes.rank() != 0:
        processes.await_announcement(folder)
        return RunDirectory(folder)
    run = prepare(cfg, folder, list(hydra.overrides.task), dict(hydra.runtime.choices))
    processes.announce(run.path)
    return run
