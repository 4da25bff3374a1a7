"""Train one run, or sweep over many: ``triptych-train [-m] [overrides]``, ``triptych-train resume=DIR``.

A process of its own executes what the run's directory records, so single runs, a sweep's, resumed or
requeued ones take the same path. Only Hydra is imported until then.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants
from triptych.cli.startup import replace_process
from triptych.config.check import check_keys
from triptych.config.identity import register_resolvers
from triptych.config.source import CONFIGS
from triptych.errors import Busy, OtherRun, StorageError, Unreadable, UserError
from triptych.files import typed_path
from triptych.run import jobs, processes
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import PRUNE, RunDirectory, check_digests
from triptych.run.prepare import prepare
from triptych.run.provenance import finished_before
from triptych.run.provenance_file import Provenance
from triptych.run.result import Result, one_line
from triptych.run.untrusted import OWN, check_run, find_checkpoint

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def compose_and_train(cfg: DictConfig) -> float | None:
    """Hydra's task: prepare the directory, execute it in a process; return the sweeper's metric."""
    job = HydraConfig.get()
    sweeping = not OmegaConf.is_missing(job.job, "num")
    path = Path(job.runtime.output_dir)
    try:
        if sweeping:  # a single run was checked before it had a directory
            check_keys(cfg, job)  # type: ignore[arg-type]  # Hydra's node is a DictConfig when it runs
        if processes.rank() == 0:
            run = prepare(cfg, path, list(job.overrides.task), dict(job.runtime.choices))
            processes.announce(run.path)
        else:
            run = RunDirectory(path)
            processes.await_announcement(run.path)
    except UserError as error:
        _refuse(path, list(job.overrides.task), error, sweeping)
        return None
    if run.status == "finished":
        if not sweeping and processes.rank() == 0:
            _tell_finished(run)
        return _metric(run, cfg.optimized_metric)
    os.environ[OWN] = str(run.path)  # and no stranger's
    command = [sys.executable, "-m", "triptych.cli.train", f"resume={run.path}"]
    if not sweeping:
        replace_process(command)  # the same process goes on: signals and exit code are its own
    if (holder := run.holder()) is not None and processes.rank() == 0:
        return _metric(run, cfg.optimized_metric, f"{path.name}: {holder} is running it")
    code = jobs.run_job(command[-1], run / "train.log")
    if code >= 128 and not (run / PRUNE).exists() and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(processes.PATIENCE)  # a job that SLURM takes back must not look like one that has ended
    if processes.rank() != 0:
        return None
    reason = _last_words(run, code)
    without_end = run.status in ("new", "interrupted")
    if 0 < code < 128 and code not in (Busy.exit_code, StorageError.exit_code) and without_end:
        run.record(Result.of(run.provenance, "failed", stage="build", error=reason))  # it could not say why
    quiet = run.status in ("failed", "diverged") or (run / PRUNE).exists()
    trouble = f"{path.name}: {reason}" if code and not quiet else ""
    return _metric(run, cfg.optimized_metric, trouble)


def _last_words(run: RunDirectory, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines: list[str] = []
    with suppress(OSError):
        lines = (run / "train.log").read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def _refuse(path: Path, overrides: list[str], error: UserError, sweeping: bool) -> None:
    """Refuse a run: exit if it is single; in a sweep record the error and go on, but where it is another."""
    if not sweeping:
        with suppress(OSError):  # Hydra made it before anything was known
            RunDirectory(path).remove_empty()
        with one_line_errors("train"):  # here and not further up, where Hydra would add lines of its own
            raise error
    if isinstance(
        error, OtherRun | Unreadable
    ):  # it came after the sweep was planned: the sweep ends with it
        raise error
    run = RunDirectory(path)
    if not isinstance(error, Busy | StorageError):  # those two say nothing of the run
        with suppress(StorageError):
            if run.status == "new":
                provenance = Provenance(overrides=tuple(overrides))
                run.record(Result.of(provenance, "failed", stage="build", error=str(error)))
    print(f"error: {path.name}: {error}", file=sys.stderr, flush=True)


def _metric(run: RunDirectory, name: str, trouble: str = "") -> float | None:
    """Return the sweeper's figure of a run; None if there is none; print ``trouble``."""
    if trouble:
        print(trouble, file=sys.stderr, flush=True)
    return run.figure(name)


def _tell_finished(run: RunDirectory) -> None:
    print(finished_before(run) or "finished before")
    _check_checkpoint(run)
    _print_result(run)


def _check_checkpoint(run: RunDirectory) -> None:
    """Warn if the checkpoint of a finished run is gone, or not the one of its result; that stands."""
    result = run.summary()
    try:
        path = find_checkpoint(run.path)
        check_digests(run.path, result.digests if result else {}, [f"checkpoints/{path.name}"])
    except (UserError, ValueError) as error:
        print(f"only the result is left: {error}", file=sys.stderr)


def _print_result(run: RunDirectory) -> None:
    print(one_line(run.summary()))
    print(f"run: {run.path}")


def main() -> None:
    """Run the console script."""
    with one_line_errors("train"):
        served = sys.argv[1:] == [jobs.SERVE] and processes.PARENT in os.environ
        if served:
            jobs.serve()  # goes on in a fork for each run, with its arguments
        resume = [a.split("=", 1)[1] for a in sys.argv[1:] if a.startswith("resume=")]
        if resume:
            if len(sys.argv) > 2:
                fix = "leave out all other arguments"
                raise UserError(f"resume={resume[0]}: its recorded configuration is used; {fix}")
            processes.end_with_parent()
            run = RunDirectory(typed_path(resume[0], "resume="))
            check_run(run)  # before anything is written or imported: it may be no run, or a stranger's
            if run.status == "finished":
                if processes.rank() == 0:
                    _check_checkpoint(run)
            else:
                # DDP's remark, once a process, that it looks for unused parameters; read by torch's import
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
                try:
                    from triptych.run.execute import execute

                    execute(run)
                except Exception as error:
                    if processes.rank() == 0:
                        raise
                    sys.exit(getattr(error, "exit_code", 1))  # the first process reports it
            if processes.rank() == 0:
                _print_result(run)
            if served:
                jobs.leave()
            return
        arguments = as_hydra_wants(sys.argv[1:], "train")
    sys.argv[1:] = arguments
    with one_line_errors("train", arguments):
        compose_and_train()
        from triptych.study.sweep import sweep_exit_code

        sys.exit(sweep_exit_code())


if __name__ == "__main__":
    main()
