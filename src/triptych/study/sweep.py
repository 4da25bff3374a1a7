"""Run a sweep: directory, record, exit code, report.

Works from the parent process alone, by looking at the runs' directories: the same for every launcher.
"""

import atexit
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from triptych.config.check import check_keys, check_optimized_metric
from triptych.config.identity import (
    grid_keys,
    not_in_names,
    own_name,
    quote,
    shared_overrides,
    sweep_name,
    unread_threads,
)
from triptych.config.keys import check_values
from triptych.errors import Busy, Diverged, StorageError, UserError
from triptych.run import processes
from triptych.run.command_errors import end_as_by_ctrl_c, no_run_after_an_error
from triptych.run.directory import PRUNE, RunDirectory
from triptych.run.parsing import UNITS
from triptych.run.provenance import command, finished_before
from triptych.run.read import find_runs, read_run
from triptych.run.result import ENDED
from triptych.run.sweep_record import SWEEP, Looks, SweepRecord
from triptych.study import rounds
from triptych.study.formatting import quantity
from triptych.study.monitor import Monitor, try_write_report
from triptych.study.papers.paper import check_scale, claims_of, set_scale
from triptych.study.prerequisites import check_cells, check_launcher, on_slurm, probe_jobs
from triptych.study.sweep_plan import (
    STUDY,
    Cells,
    KeptRecords,
    Reservation,
    check_own_files,
    check_tuning,
    plan_cells,
)

_hooks: list["SweepHook"] = []  # of this process's sweep


def sweep_exit_code() -> int:
    """Return the exit code: 0 all finished, 3 others diverged, 75 others run elsewhere, 1 all else.

    A run that a search has stopped counts as finished. 1 also if the report cannot be written.
    """
    ended = {end for hook in _hooks for end, _ in map(_end, hook.runs())} - {"pruned"}
    if any(hook.report_problem for hook in _hooks):
        return 1
    if ended <= {"finished"}:
        return 0
    if ended <= {"finished", "diverged"}:
        return Diverged.exit_code
    return Busy.exit_code if ended <= {"finished", "diverged", "busy"} else 1


def _end(run: RunDirectory) -> tuple[str, str | None]:
    """Return a run's status, "pruned" if a search has stopped it, or "busy" with the process that runs it."""
    if run.status in ENDED:
        return read_run(run.path).status, None  # as the report has it: "unreadable" if a file is damaged
    if (run / PRUNE).exists():
        return "pruned", None
    holder = run.holder()
    return ("busy" if holder else run.status), holder


def current_hook() -> "SweepHook":
    """Return the hook of the sweep that this process runs."""
    return _hooks[-1]


class SweepHook(Callback):
    """Hydra's callback around a multirun."""

    report_problem = ""  # why the report could not be written

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with no_run_after_an_error("train"):
            with open_dict(config):
                self._set_up(config)
            self.config, self.root = config, Path(config.hydra.sweep.dir)
            check_own_files(self.root)
            self.jobs = rounds.known_jobs(config)
            if config.get("until"):
                rounds.seeds_after(rounds.settings_and_seeds(self.jobs)[1], config.max_seeds)
            self.cells = [self.cell(job) for job in self.jobs]  # more, as a sweeper expects them
            if len({*self.cells}) < len(self.cells):
                key = next(iter(grid_keys(config) & {*not_in_names()}), "-m")
                raise UserError(f"{key}: several values, and two cells would share a directory; type one")
            self.before = SweepRecord.read(self.root)
            Looks.read(self.root)  # Unreadable: the looks taken decide what may be claimed
            sweeper = config.hydra.sweeper
            search, tune = "triptych_search" in sweeper._target_, sweeper.get("tune")
            if search:
                check_optimized_metric(config)
            if not tune:
                check_tuning(config, self.root, self.before.tuning, {})
            self.reservation, self.done = Reservation(self.root), set[str]()
            self.kept = KeptRecords(self.root)
            first = self.plan(self.jobs)
            self.facts = self._facts()
            if config.plan:
                rounds.print_plan(config, self.jobs)
                sys.exit(0)
            if search and find_spec("optuna") is None:
                raise UserError("hparams_search: not installed; pip install 'triptych[search]'")
            warm_up = list[str]()
            if first or not self.cells:
                begun = any(run.checkpoints() or run.status == "finished" for run in self.runs())
                warm_up = check_cells(config, self.jobs or probe_jobs(config), begun)
            try:
                if not search and not tune:  # their sweepers plan first
                    self.reserve(first)
                    self.record(expected=self._expected())
            except StorageError:
                if self.cells and not first:
                    try_write_report(self.root, show=True)
                raise
            except OSError as error:
                problem = f"cannot be written ({error.strerror})"
                raise UserError(f"{self.root}: {problem}; choose another") from error
        size = f"{quantity(len(self.cells), 'run')} in " if self.cells else ""
        print(f"sweep {self.root.name}: {size}{self.root}", file=sys.stderr, flush=True)
        finished = [RunDirectory(self.root / cell) for cell in self.cells if cell in self.done]
        unread = unread_threads(config.threads, config.hydra.overrides.task)
        for line in filter(None, (finished_before(*finished), unread, *warm_up)):
            print(line, file=sys.stderr, flush=True)
        _hooks.append(self)
        self.monitor = Monitor(self.root, self.cells, self.done)
        at_once = config.hydra.launcher.get("n_jobs") or 1
        os.environ["TRIPTYCH_THREADS"] = str(max(1, config.cores // at_once) if at_once > 0 else 1)
        os.environ[processes.SWEEP] = str(os.getpid())
        if on_slurm(config):  # whose jobs go on
            from triptych.study.slurm import watch_queue

            watch_queue(config.hydra.launcher, self.job_without_result)
        else:
            end_as_by_ctrl_c(self.stop_jobs)
        self.monitor.start()
        atexit.register(self.leave)

    def _set_up(self, config: DictConfig) -> None:
        """Check what concerns the sweep as a whole, and name its directory for all jobs."""
        if processes.launch():
            fix = "use trainer=ddp in it, not torchrun or srun"
            raise UserError(f"-m: a sweep starts its processes itself; {fix}")
        check_keys(config, config.hydra)
        check_values(OmegaConf.to_container(config.hydra.sweeper, resolve=True), path="hydra.sweeper")
        rounds.check_rounds(config, grid=rounds.is_grid(config))
        typed_keys = {one.partition("=")[0].lstrip("+~") for one in map(str, config.hydra.overrides.task)}
        tune = config.hydra.sweeper.get("tune") or {}
        if tune and config.get("until"):
            raise UserError("until=decided: not for a sweep that tunes; use until=null")
        for key in typed_keys & {*tune, "test"} if tune else ():
            raise UserError(
                f"{key}: set by this sweep's tuning; leave it out, or add hydra.sweeper.tune=null"
            )
        check_scale(config)
        of_scale = set_scale(config)
        check_launcher(config)
        if not config.hydra.sweep.dir:
            raise UserError("hydra.sweep.dir: must be a directory; leave it out for one of its own")
        typed = config.hydra.overrides.hydra
        if any(str(one).startswith("hydra.sweep.subdir=") for one in typed):
            raise UserError("hydra.sweep.subdir: a cell's directory follows from its overrides; leave it out")
        if not any(str(one).startswith("hydra.sweep.dir=") for one in typed):
            # a literal override reaches every job on every launcher
            root = Path(config.hydra.sweep.dir).absolute() / sweep_name(config)
            config.hydra.sweep.dir = str(root)
            typed.append(f"hydra.sweep.dir={quote(str(root))}")
            # What all cells share stands in the sweep's name, so theirs need not repeat it. A key of which an
            # earlier command had several values stays in them.
            naming = config.hydra.job.config.override_dirname
            named = SweepRecord.read(root).named
            hidden = sorted({*shared_overrides(config)}.difference(named))
            naming.exclude_keys = [*naming.exclude_keys, *of_scale, *hidden]
            quoted = ",".join(f"'{key}'" for key in naming.exclude_keys)
            typed.append(f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]")

    def _facts(self) -> dict[str, Any]:
        shared = sorted(shared_overrides(self.config).values())
        facts: dict[str, Any] = {"command": ["triptych-train", *command()[1:]]}
        facts |= {"title": own_name(self.config) or "sweep", "shared": shared}
        facts["named"] = sorted({*self.before.named, *grid_keys(self.config)})
        if self.config.get("equal_within") is not None:
            facts["equal_within"] = self.config.equal_within
        ended = any(run.status in ("finished", "diverged") for run in self.runs())
        facts |= claims_of(self.config, self.before, ended)
        if facts.get("claims_changed"):
            changed = "the claims or their seeds are not those that this sweep began with"
            print(f"{changed}; its report says so", file=sys.stderr, flush=True)
        return facts

    def leave(self) -> None:
        """Leave the terminal as it was, and the report true of the runs that it stopped; or all as it was."""
        self.monitor.stop()
        others = self.reservation.others()
        self.reservation.release()
        with suppress(KeyboardInterrupt):  # pressed again: the earlier report stays
            if self.kept.untouched and not others and not on_slurm(self.config):
                self.kept.put_back()
            elif (self.root / "report.html").exists():
                try_write_report(self.root)

    def stop_jobs(self, number: int) -> None:
        """Pass a signal to this sweep's jobs, and wait: an interrupted launcher would kill them."""
        pids = {pid for run in self.runs() if (pid := processes.pid_of(run.holder()))}
        processes.stop_below(pids, number)

    def record(self, **facts: Any) -> None:
        """Record facts of the sweep in ``sweep.json``, for the report."""
        self.facts |= facts
        RunDirectory(self.root).write(SWEEP, SweepRecord.from_dict(self.facts).record)

    def plan(self, jobs: Sequence[Sequence[str]]) -> Cells:
        """Plan runs by their overrides, and return those to be started or continued; UserError if refused."""
        cells = {self.cell(job): job for job in jobs}
        plans = plan_cells(self.config, self.root, cells)
        self.done |= {name for name, plan in plans.items() if plan.done}
        self.reservation.cells |= cells
        return {name: job for name, job in cells.items() if name not in self.done}

    def reserve(self, cells: Cells) -> None:
        """Reserve planned cells against other commands, if any is to be run; UserError or Busy if refused."""
        if cells:
            self.reservation.reserve(self.config, cells)

    def expect(self, jobs: Sequence[Sequence[str]], more: int = 0, **facts: Any) -> None:
        """Expect runs, by their overrides, and how many more there will be; errors as of ``plan``.

        ``facts``: further ones to record.
        """
        self.reserve(self.plan(jobs))
        new = [name for name in map(self.cell, jobs) if name not in self.cells]
        self.cells.extend(dict.fromkeys(new))  # the same list that the monitor draws
        self.record(expected=self._expected() + more, **facts)

    def _expected(self) -> int:
        """Count the runs there and the cells, also of other commands at work; copies of a run are one."""
        there = find_runs(self.root)
        before = {RunDirectory(path).readable_provenance.id or str(path) for path in there}
        names = {*self.cells}
        for _, others in self.reservation.others():
            names |= others.keys() - {STUDY}
        return len(before) + len({self.root / name for name in names} - {*there})

    def cell(self, overrides: Sequence[str]) -> str:
        """Return the name of the directory of the job that has these overrides, as Hydra will make it."""
        return rounds.cell_name(overrides, set(self.config.hydra.job.config.override_dirname.exclude_keys))

    def look(self, facts: dict[str, Any]) -> int:
        """Return the look that an earlier start of this sweep reached; 1 if new or of other rules."""
        until = self.before.until
        if until is None or (until.looks, until.equal_within) != (facts["looks"], facts["equal_within"]):
            return 1
        return min(until.look, until.looks)

    def all_finished(self, jobs: Sequence[Sequence[str]]) -> bool:
        """Return whether all of these runs have a result."""
        ends = {RunDirectory(self.root / self.cell(job)).status for job in jobs}
        return ends <= {"finished", "diverged"}

    def validation_bound(self, job: Sequence[str]) -> float:
        """Return a finished run's validation bound; infinite if it has none."""
        result = RunDirectory(self.root / self.cell(job)).summary()
        figures = result.val if result else {}
        return next((figures[unit].mean for unit in UNITS if unit in figures), math.inf)

    def runs(self) -> list[RunDirectory]:
        return [RunDirectory(self.root / cell) for cell in self.cells]

    def job_without_result(self, job: str, overrides: Sequence[str], state: str) -> float | None:
        """Print that a SLURM job ended before its run, as by ``scancel``; return the run's metric, if any."""
        run = RunDirectory(self.root / self.cell(overrides))
        if run.status not in ENDED:
            why = f"its SLURM job {job} ended without a result ({state}); the same command goes on with it"
            print(f"{run.path.name}: {why}", file=sys.stderr, flush=True)
        return run.figure(self.config.optimized_metric)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # launchers send the hook to their workers, where its thread is not needed and cannot go

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        # the run's directory has it; a long sweep would keep all
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        atexit.unregister(self.leave)
        self.monitor.stop()
        self.reservation.release()
        for run in self.runs():
            end, holder = _end(run)
            if end not in (*ENDED, "unreadable", "pruned"):
                run.leave()
                print(f"{run.path.name}: {f'{holder} is running it' if holder else 'did not end'}")
        self.report_problem = try_write_report(self.root, show=True)
        if self.report_problem:
            print(f"error: {self.report_problem}", file=sys.stderr)
