"""Check and prepare a single run, from the command line or from Python."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from triptych.config.identity import check_cores
from triptych.errors import UserError
from triptych.files import check_outside_of_records
from triptych.records import Config
from triptych.run import processes
from triptych.run.directory import RunDirectory
from triptych.run.inputs import check_files
from triptych.run.prepare import check_same_run, contains_run, plan_run, prepare
from triptych.run.read import find_runs, is_run
from triptych.run.request import Request, resolve

SWEEP_GROUPS = ("ablation", "paper", "hparams_search")
# Keys that only a sweep reads, with their values in a single run.
SWEEP_KEYS = {"until": None, "setting": None, "scale": "small"}


def request_single(config: DictConfig) -> Request:
    """Check and resolve the configuration of a single run; UserError if it cannot be executed."""
    check_no_sweep(config)
    check_run_directory(config)
    request = resolve(config, Path(config.hydra.run.dir))
    request.check_overrides()
    check_cores(request.config, "cores", "threads")
    if RunDirectory(request.path).status != "finished":
        processes.check_cpu_processes(request.config["trainer"])
        check_guidance(request.config)
        check_files(OmegaConf.create(request.config))
    return request


def check_no_sweep(config: DictConfig) -> None:
    """Raise UserError for groups and keys that only a sweep reads."""
    for key, value in SWEEP_KEYS.items():
        if config.get(key, value) != value:
            raise UserError(f"{key}={config[key]}: only a sweep reads it; add -m, or leave it out")
    for group in SWEEP_GROUPS:
        choice = config.hydra.runtime.choices.get(group)
        if choice not in (None, "null"):
            raise UserError(
                f"{group}={choice}: only a sweep compares settings; add -m, or leave it out"
            )


def check_run_directory(config: DictConfig) -> None:
    """Raise UserError if several runs or processes would work in the same directory."""
    if processes.launch_id() and not config.name:
        raise UserError("name=null: all processes need one shared directory; type name=NAME")
    if not config.hydra.run.dir:
        raise UserError("hydra.run.dir: must be a directory; leave this key out to create one")
    home = Path(config.hydra.run.dir)
    check_outside_of_records("hydra.run.dir", home, home)
    if any(is_run(folder) for folder in find_runs(home) if folder != home):
        raise UserError(f"hydra.run.dir={home}: holds runs; choose a directory without runs")


def check_guidance(plain: Config) -> None:
    """Raise UserError if guidance needs a checkpoint and ``guide`` does not name one."""
    guidance = plain.get("guidance") or {}
    if any(guidance.get(key, "unused") is None for key in ("classifier", "weak")):
        fix = "as in guide=.../checkpoints/last.ckpt"
        raise UserError(f"guide=null: this guidance needs a checkpoint, {fix}")


def check_existing_run(request: Request) -> None:
    """Raise OtherRun, as ``prepare`` does, if the directory holds another run; write nothing."""
    if contains_run(RunDirectory(request.path)) and not request.config["force"]:
        check_same_run(request, plan_run(request))


def prepare_run(request: Request) -> RunDirectory:
    """Prepare the directory of a run on rank 0; the other ranks wait for it.

    Raises the errors of ``prepare``.
    """
    if processes.rank() != 0:
        processes.await_announcement(request.path)
        return RunDirectory(request.path)
    run = prepare(request)
    processes.announce_directory(run.path)
    return run
