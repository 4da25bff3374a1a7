"""Run a sweep: name its directory, write its record and report, and choose the exit code.

All of it happens in the parent process, which reads the runs' directories, so it works with every
launcher.
"""

import atexit
import math
import os
import sys
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from triptych.config.identity import (
    explicit_sweep_name,
    grid_keys,
    shared_overrides,
)
from triptych.errors import Busy, Diverged, UserError
from triptych.files import check_outside_of_records
from triptych.run import processes
from triptych.run.command_errors import exit_on_hook_error, raise_stop_request_on_signals
from triptych.run.directory import PRUNE, RunDirectory, log_line
from triptych.run.provenance import command
from triptych.run.read import find_runs, read_run
from triptych.run.result import ENDED
from triptych.run.sweep_record import SCHEMA, SWEEP, Looks, SweepRecord
from triptych.study import rounds
from triptych.study.concurrency import set_runs_at_once
from triptych.study.formatting import count_noun
from triptych.study.monitor import Monitor, try_write_report
from triptych.study.papers.paper import claim_entries, set_scale
from triptych.study.prerequisites import (
    check_cells,
    check_launcher,
    first_warning,
    probe_jobs,
    uses_slurm,
)
from triptych.study.sweep_command import check_command, name_directory
from triptych.study.sweep_plan import (
    STUDY,
    Cells,
    RecordBackup,
    Reservation,
    check_other_commands,
    check_own_files,
    check_tuning,
    plan_cells,
)

_hooks: list["SweepHook"] = []  # the hook of the sweep that this process runs
# {exit code of a sweep: run statuses that it allows}. The first code that allows all runs' statuses
# is used; if there is none, the code is 1.
EXIT_CODES = {
    0: {"finished", "pruned"},
    Diverged.exit_code: {"finished", "pruned", "diverged"},
    Busy.exit_code: {"finished", "pruned", "diverged", "busy"},
}


def sweep_exit_code() -> int:
    """Return the sweep's exit code: 0 if all runs finished, 3, 75 or 1 otherwise.

    3: some diverged; 75: some are held by another process; 1: anything else, or the report cannot
    be written. A run that a search has pruned counts as finished.
    """
    ends = {hook.outcome(run) for hook in _hooks for run in hook.runs()}
    if any(hook.report_problem for hook in _hooks):
        return 1
    for code, accepted in EXIT_CODES.items():
        if ends <= accepted:
            return code
    return 1


def current_hook() -> "SweepHook":
    """Return the hook of the sweep that this process runs; UserError if there is none."""
    if not _hooks:
        raise UserError("hydra.callbacks.sweep: a sweep needs this callback; do not delete it")
    return _hooks[-1]


class SweepHook(Callback):
    """Hydra callback that checks, plans, records, monitors and reports a multirun."""

    report_problem = ""  # why there is no new report
    # With force=true: the ids of earlier runs, all of which the command replaces.
    replaced: Set[str] = frozenset()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check, plan and record the sweep, then monitor its runs; an error here writes nothing."""
        warning = concurrency = ""
        with exit_on_hook_error("train"):
            with open_dict(config):
                check_command(config)
                name_directory(config, set_scale(config))
            check_launcher(config)
            self._read_directory(config)
            new = self.plan(self.jobs)
            self.facts = self._sweep_entries()
            if config.plan:
                check_other_commands(config, self.root, new, self.reservation.others())
                rounds.print_plan(config, self.jobs)
                sys.exit(0)
            if new or not self.cells:
                jobs = [*new.values()] or probe_jobs(config)
                configs = check_cells(config, jobs, self._has_begun() and not config.force)
                warning = first_warning(config, configs)
                concurrency = set_runs_at_once(config, configs)
            if not rounds.is_adaptive(config):
                self.reserve(new)
                self.record(expected=self._count_expected_runs())
        size = ""
        if self.cells:
            size = f"{count_noun(len(self.cells), 'run')} in "
        print(f"sweep {self.root.name}: {size}{self.root}", file=sys.stderr, flush=True)
        log_line(None, concurrency)
        log_line(None, warning)
        self._start_monitor()

    def _read_directory(self, config: DictConfig) -> None:
        """Read the records that earlier commands left in the directory; list this command's runs.

        UserError: a link in a file's place, two runs with one directory, or a changed tuning.
        """
        self.config = config
        self.root = Path(config.hydra.sweep.dir)
        check_outside_of_records("hydra.sweep.dir", self.root, self.root)
        check_own_files(self.root)
        self.jobs = rounds.jobs_known_beforehand(config)
        if config.get("until"):
            rounds.seed_rounds(rounds.settings_and_seeds(self.jobs)[1], config.max_seeds)
        self.cells = list(map(self.cell_directory_name, self.jobs))  # a sweeper may add more later
        if len({*self.cells}) < len(self.cells):
            raise UserError(
                "-m: two runs would have the same directory; list each value once and pass one name"
            )
        self.before = SweepRecord.read(self.root)
        Looks.read(self.root)  # raises if unreadable, as earlier looks limit later claims
        if not config.hydra.sweeper.get("tune"):
            check_tuning(config, self.root, self.before.tuning, {})
        self.reservation = Reservation(self.root)
        self.backup = RecordBackup(self.root)
        self.done = set[str]()
        if config.force and rounds.is_grid(config):  # a search keeps its finished trials
            ids = {RunDirectory(run).readable_provenance.id for run in find_runs(self.root)}
            self.replaced = ids - {""}

    def _has_begun(self) -> bool:
        """Return whether a run of this command has a result or a checkpoint."""
        return any(run.checkpoints() or run.status == "finished" for run in self.runs())

    def _sweep_entries(self) -> dict[str, Any]:
        """Return this command's entries of ``sweep.json``."""
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "command": ["triptych-train", *command()[1:]],
            "title": explicit_sweep_name(self.config) or "sweep",
            "shared": sorted(shared_overrides(self.config).values()),
            "named": sorted({*self.before.named, *grid_keys(self.config)}),
        }
        if self.config.get("equal_within") is not None:
            facts["equal_within"] = self.config.equal_within
        any_result = any(run.status in ("finished", "diverged") for run in self.runs())
        return facts | claim_entries(self.config, self.jobs, self.before, any_result)

    def _start_monitor(self) -> None:
        """Show the runs' progress, share the cores among them, and stop them with this process."""
        _hooks.append(self)
        self.monitor = Monitor(self.root, self.cells, self.done)
        at_once = self.config.hydra.launcher.get("n_jobs") or 1
        # joblib uses all cores if n_jobs is negative: give each run one thread then.
        threads = max(1, self.config.cores // at_once)
        os.environ["TRIPTYCH_THREADS"] = str(threads)
        os.environ[processes.SWEEP] = str(os.getpid())
        if uses_slurm(self.config):
            from triptych.study.slurm import watch_queue

            watch_queue(self.config.hydra.launcher, self.job_without_result)
        else:
            raise_stop_request_on_signals(self.stop_jobs)
        self.monitor.start()
        atexit.register(self.end_monitoring)

    def end_monitoring(self) -> None:
        """Stop the monitor and update the report; if no run was started, restore the records."""
        self.monitor.stop()
        others = self.reservation.others()
        self.reservation.release()
        with suppress(KeyboardInterrupt):  # a second Ctrl-C keeps the earlier report
            if self.backup.no_run_changed and not others and not uses_slurm(self.config):
                self.backup.restore()
            elif (self.root / "report.html").exists():
                try_write_report(self.root)

    def stop_jobs(self, signal_number: int) -> None:
        """Send a signal to this sweep's jobs and wait for them to stop.

        Without the wait the interrupted launcher would kill them.
        """
        pids = map(processes.parse_local_pid, (run.holder() for run in self.runs()))
        processes.stop_descendants({*filter(None, pids)}, signal_number)

    def record(self, **facts: Any) -> None:
        """Add entries to ``sweep.json``, which the report reads.

        An equal record is not written, so a finished sweep is also shown on a read-only disk.
        """
        self.facts |= facts
        entries = SweepRecord.from_dict(self.facts).record
        if entries != SweepRecord.read(self.root).record:
            RunDirectory(self.root).write(SWEEP, entries)

    def plan(self, jobs: Sequence[Sequence[str]]) -> Cells:
        """Plan the runs of these jobs (lists of overrides); return those to start or resume.

        UserError: a directory holds a run with other settings.
        """
        cells = {self.cell_directory_name(job): job for job in jobs}
        plans = plan_cells(self.config, self.root, cells)
        self.done |= {name for name, plan in plans.items() if plan.is_finished}
        self.done |= {name for name in cells if self._has_replaced(RunDirectory(self.root / name))}
        self.reservation.cells |= cells
        return {name: job for name, job in cells.items() if name not in self.done}

    def _has_replaced(self, run: RunDirectory) -> bool:
        """Return whether this command, with ``force=true``, has already executed a grid's run."""
        if not self.config.force or not rounds.is_grid(self.config):
            return False
        fresh = run.readable_provenance.id not in {*self.replaced, ""}
        return fresh and run.status in ("finished", "diverged")

    def reserve(self, cells: Cells) -> None:
        """Lock the planned cells, if any, against concurrent commands.

        UserError: another command runs a cell with other settings. Busy: wait for that command.
        """
        if cells:
            self.reservation.reserve(self.config, cells)

    def expect(self, jobs: Sequence[Sequence[str]], n_later: int = 0, **facts: Any) -> None:
        """Plan, reserve and record further runs of an adaptive sweeper.

        ``jobs``: their overrides; ``n_later``: how many more will follow; ``facts``: further
        entries of ``sweep.json``. Errors: those of ``plan`` and ``reserve``.
        """
        self.reserve(self.plan(jobs))
        for name in map(self.cell_directory_name, jobs):
            if name not in self.cells:
                self.cells.append(name)  # the monitor shows the same list
        self.record(expected=self._count_expected_runs() + n_later, **facts)

    def _count_expected_runs(self) -> int:
        """Count runs with a directory (copies once) and the other cells of all running commands."""
        names = {*self.cells}
        for _, others in self.reservation.others():
            names |= others.keys() - {STUDY}
        runs = find_runs(self.root)
        ids = {RunDirectory(run).readable_provenance.id or str(run) for run in runs}
        return len(ids) + len({self.root / name for name in names} - {*runs})

    def cell_directory_name(self, overrides: Sequence[str]) -> str:
        """Return the name of the directory that Hydra will create for a job's overrides."""
        hidden = self.config.hydra.job.config.override_dirname.exclude_keys
        return rounds.cell_name(overrides, set(hidden))

    def run_directory(self, job: Sequence[str]) -> RunDirectory:
        """Return the directory of the run with a job's overrides."""
        return RunDirectory(self.root / self.cell_directory_name(job))

    def next_look(self, facts: dict[str, Any]) -> int:
        """Return the number of the look at which to go on: that of an earlier command, or 1.

        The earlier command counts only if its looks and its margin were equal.
        """
        until = self.before.until
        rule = (facts["looks"], facts["equal_within"])
        if until is None or (until.looks, until.equal_within) != rule:
            return 1
        return min(until.look, until.looks)

    @property
    def reported(self) -> bool:
        """Whether an earlier command had no planned looks: its report may have spent all 5%."""
        if self.before.until is None:
            return bool(self.before.record)
        return self.before.until.reported

    def all_finished(self, jobs: Sequence[Sequence[str]]) -> bool:
        """Return whether the runs of all these jobs have finished or diverged."""
        ends = {self.run_directory(job).status for job in jobs}
        return ends <= {"finished", "diverged"}

    def validation_bound(self, job: Sequence[str]) -> float:
        """Return a finished run's validation bound; infinite if it has none."""
        bound = self.run_directory(job).figure("val.bound.mean")
        if bound is None:
            return math.inf
        return bound

    def runs(self) -> list[RunDirectory]:
        """Return the directories of this command's runs."""
        return [RunDirectory(self.root / cell) for cell in self.cells]

    def outcome(self, run: RunDirectory) -> str:
        """Return a run's status; "pruned" if a search stopped it, "busy" if a process runs it.

        "failed" if it could not be replaced (``force=true``), so that the earlier run is back.
        """
        if run.readable_provenance.id in self.replaced:
            return "failed"
        if run.status in ENDED:
            return read_run(run.path).status  # "unreadable" if a file is damaged
        if (run / PRUNE).exists():
            return "pruned"
        if run.holder():
            return "busy"
        return run.status

    def job_without_result(self, job: str, overrides: Sequence[str], state: str) -> float | None:
        """Report a SLURM job that ended without a result (as by scancel); return its metric."""
        run = self.run_directory(overrides)
        if run.status not in ENDED:
            message = (
                f"{run.path.name}: its SLURM job {job} ended without a result ({state}); "
                "repeat the same command to resume it"
            )
            print(message, file=sys.stderr, flush=True)
        return run.figure(self.config.optimized_metric)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # launchers pickle the hook, and its thread cannot be pickled

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        # Hydra keeps the configuration of each job, which would fill the memory in long sweeps.
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        atexit.unregister(self.end_monitoring)
        self.monitor.stop()
        self.reservation.release()
        for run in self.runs():
            if self.outcome(run) in (*ENDED, "unreadable", "pruned"):
                continue
            holder = run.holder()
            run.clear_owner()
            state = "did not end"
            if holder:
                state = f"{holder} is running it"
            print(f"{run.path.name}: {state}")
        if self.cells and all(run.readable_provenance.id in self.replaced for run in self.runs()):
            self.backup.restore()
            self.report_problem = f"{self.root}: force=true replaced no run; see the errors above"
        else:
            self.report_problem = try_write_report(self.root, show=True)
        if self.report_problem:
            print(f"error: {self.report_problem}", file=sys.stderr)
