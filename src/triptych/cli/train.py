"""Train one run, or a sweep of many runs, with ``triptych-train``.

``triptych-train [-m] [overrides]`` starts, ``triptych-train resume=DIR`` resumes.

This module composes and checks a run's configuration and prepares its directory, without importing
torch. Another process (``resume.py``) then executes the run in this directory. So single runs, runs
of a sweep, and resumed or requeued runs are executed in the same way.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from triptych.cli import resume
from triptych.cli.arguments import read_command_line
from triptych.cli.startup import replace_process
from triptych.config.check import check_keys
from triptych.config.compose import compose_command
from triptych.config.identity import register_resolvers
from triptych.config.source import CONFIGS
from triptych.errors import Busy, OtherRun, StorageError, Unreadable, UserError
from triptych.run import jobs, processes
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import PRUNE, RunDirectory
from triptych.run.provenance_file import Provenance
from triptych.run.request import resolve
from triptych.run.result import ENDED, Result
from triptych.run.single import check_existing_run, check_no_sweep, prepare_run, request_single
from triptych.run.untrusted import OWN

register_resolvers()


def main() -> None:
    """Run the command ``triptych-train``."""
    if any(argument.startswith(resume.ARGUMENT) for argument in sys.argv[1:]):
        resume.main()
        return
    with one_line_errors("train"):
        options = read_command_line(sys.argv[1:], "train")
        if options.hydra is None:
            train(compose_command("train", options.overrides))
            return
        sys.argv[1:] = [options.hydra, *options.overrides]
        train_cell()
        from triptych.study.sweep import sweep_exit_code

        sys.exit(sweep_exit_code())


def train(config: DictConfig) -> None:
    """Check a single run and prepare its directory; then replace this process by ``resume.py``."""
    if config.plan:
        print_plan(config)
        return
    run = prepare_run(request_single(config))
    if run.status != "finished":
        os.environ[OWN] = str(run.path)
        replace_process([sys.executable, "-m", "triptych.cli.resume", f"resume={run.path}"])
    if processes.rank() == 0:
        resume.print_finished(run)


def print_plan(config: DictConfig) -> None:
    """Print the expected cost of a single run, after the checks that are made before training."""
    check_no_sweep(config)
    request = resolve(config, Path(config.hydra.run.dir))
    request.check_overrides()
    check_existing_run(request)
    from triptych.study.plan import describe_cost

    print("\n".join(describe_cost([(str(config.name or "run"), 1, 1, request.config)])))


# a sweep's run ------------------------------------------------------------------------------------


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def train_cell(cfg: DictConfig) -> float | None:
    """Execute one run of a sweep in a new process; return the metric that a search optimises.

    Hydra calls this task function for each run of a sweep.
    """
    job: Any = HydraConfig.get()  # a DictConfig when it runs
    run = RunDirectory(job.runtime.output_dir)
    try:
        check_keys(cfg, job)
        run = prepare_run(resolve(cfg, run.path, job))
    except (OtherRun, Unreadable):
        raise  # the directory has changed since the sweep was planned: the sweep ends
    except UserError as error:
        record_refusal(run, list(job.overrides.task), error)
        return None
    if run.status != "finished":
        os.environ[OWN] = str(run.path)
        execute_in_process(run)
    return run.figure(cfg.optimized_metric)


def record_refusal(run: RunDirectory, overrides: list[str], error: UserError) -> None:
    """Record why one run of a sweep cannot start, or print it; the other runs continue."""
    if processes.rank() != 0:
        return
    temporary = isinstance(error, Busy | StorageError)
    with suppress(StorageError):
        if run.status == "new" and not temporary:
            provenance = Provenance(overrides=tuple(overrides))
            run.record(Result.from_run(provenance, "failed", stage="build", error=str(error)))
    if run.status not in ENDED:  # The sweep itself prints what runs record.
        print(f"error: {run.path.name}: {error}", file=sys.stderr, flush=True)


def execute_in_process(run: RunDirectory) -> None:
    """Execute a run in a new process, unless another process is executing it."""
    first = processes.rank() == 0
    holder = run.holder()
    if holder is not None and first:
        print(f"{run.path.name}: {holder} is running it", file=sys.stderr, flush=True)
        return
    code = jobs.run_job(f"{resume.ARGUMENT}{run.path}", run / "train.log")
    pruned = (run / PRUNE).exists()
    if code >= 128 and not pruned and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        # SLURM has preempted this job, and requeues it only if it does not end by itself first.
        time.sleep(processes.PATIENCE)
    if code != 0 and first:
        report_unfinished_run(run, code, pruned)


def report_unfinished_run(run: RunDirectory, code: int, pruned: bool) -> None:
    """Print why a run has not finished, and record its failure if its process could not."""
    reason = process_end_reason(run, code)
    failed = 0 < code < 128 and code not in (Busy.exit_code, StorageError.exit_code)
    if failed and run.status in ("new", "interrupted"):
        run.record(Result.from_run(run.provenance, "failed", stage="build", error=reason))
    if run.status not in ("failed", "diverged") and not pruned:
        print(f"{run.path.name}: {reason}", file=sys.stderr, flush=True)


def process_end_reason(run: RunDirectory, code: int) -> str:
    """Return why a run's process ended: its last line of output, or the signal that killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines: list[str] = []
    with suppress(OSError):
        lines = (run / "train.log").read_text(errors="replace").strip().splitlines()
    if not lines:
        return f"exit code {code}"
    return lines[-1].removeprefix("error: ")


if __name__ == "__main__":
    main()
