"""A sweep: its directory, its live table while it runs, its report at the end.

Works from the parent process alone, by looking at the runs' directories: the same for every launcher.
"""

import atexit
import json
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from triptych.config.check import check_keys
from triptych.config.keys import check_values
from triptych.config.names import grid_keys, own_name, shared_overrides, slug, sweep_name
from triptych.errors import StorageError, UserError
from triptych.runs import processes
from triptych.runs.directory import ENDED, REFUSED, RunDirectory
from triptych.runs.exits import one_line_errors
from triptych.runs.plain import load
from triptych.runs.provenance import changed_since, command
from triptych.runs.summary import UNITS, figure
from triptych.sweeps.paper import check_scale, claims_of, set_scale
from triptych.sweeps.rounds import check_rounds, grid

QUIET = 60.0  # seconds without a word after which a run is said to be stalled
SHOWN = 4  # runs at work that a line names
_hooks: list["SweepHook"] = []  # of this process's sweep


def exit_code() -> int:
    """Of this process's sweep, by its runs and nothing else: how each ended is in its own directory.

    0: all are finished; 3: the others diverged; 75: other processes are running the rest; 1: one failed or
    did not end.
    """
    ended = {end for hook in _hooks for end, _ in map(_end, hook.runs())}
    ended |= {"refused" for hook in _hooks if hook.refused}
    for accepted, code in (
        ({"finished"}, 0),
        ({"finished", "diverged"}, processes.DIVERGED),
        ({"finished", "diverged", "busy"}, processes.BUSY),
    ):
        if ended <= accepted:
            return code
    return 1


def _end(run: RunDirectory) -> tuple[str, str | None]:
    """Its status, or "busy" with the name of the process that is running it."""
    if run.status in ENDED:
        return run.status, None
    holder = run.holder()
    return ("busy" if holder else run.status), holder


def current() -> "SweepHook":
    """The hook of the sweep that this process runs."""
    return _hooks[-1]


@contextmanager
def no_run_after_an_error() -> Iterator[None]:
    """Hydra turns a callback's exceptions into warnings and goes on; an exit it lets through."""
    try:
        with one_line_errors():
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class SweepHook(Callback):
    """Hydra's callback around a multirun."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with no_run_after_an_error(), open_dict(config):
            if processes.launch():
                raise UserError(
                    "-m: a sweep starts its processes itself; use trainer=ddp in it, not torchrun or srun"
                )
            check_keys(config, config.hydra)
            check_values(OmegaConf.to_container(config.hydra.sweeper, resolve=True), path="hydra.sweeper")
            check_rounds(config, sweeping=True, grid=_is_grid(config))
            check_scale(config)
            of_scale = set_scale(config)
            _check_allocation(config)
            _check_ray(config)
            given = [o for o in config.hydra.overrides.hydra if str(o).startswith("hydra.sweep.dir=")]
            if not given:
                # a literal override reaches every job on every launcher
                root = Path(config.hydra.sweep.dir).absolute() / sweep_name(config)
                config.hydra.sweep.dir = str(root)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{root}'")
                # what all cells share stands in the sweep's name, so a cell's need not repeat it
                naming = config.hydra.job.config.override_dirname
                naming.exclude_keys = [*naming.exclude_keys, *shared_overrides(config), *of_scale]
                quoted = ",".join(f"'{key}'" for key in naming.exclude_keys)
                config.hydra.overrides.hydra.append(
                    f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"
                )
        self.root = Path(config.hydra.sweep.dir)
        with no_run_after_an_error():
            self.cells = expected_cells(config)
        self.config = config
        self.before = load(self.root / "sweep.json") or {}
        self.facts: dict[str, Any] = {"command": ["triptych-train", *command()[1:]]}
        self.facts |= {
            "title": own_name(config) or "sweep",
            "shared": sorted(shared_overrides(config).values()),
        }
        if config.get("equal_within") is not None:
            self.facts["equal_within"] = config.equal_within
        with no_run_after_an_error():
            ended = any(run.status in ("finished", "diverged") for run in self.runs())
            self.facts |= claims_of(config, self.before, ended)
        if self.facts.get("claims_changed"):
            print(
                "the claims or their seeds are not those that this sweep began with; its report says so",
                file=sys.stderr,
            )
        self.refused: dict[str, str] = {}  # cells that were not run, since their directories hold other runs
        with no_run_after_an_error():
            self._begin()
        self._tell_other_code()
        _hooks.append(self)
        self.monitor = Monitor(self.root, self.cells)
        at_once = config.hydra.launcher.get("n_jobs") or 1
        os.environ["TRIPTYCH_THREADS"] = str(max(1, config.cores // at_once) if at_once > 0 else 1)
        os.environ[processes.SWEEP] = str(os.getpid())
        if _on_slurm(config):
            from triptych.sweeps.slurm import watch_queue

            watch_queue(config.hydra.launcher, self.job_without_result)
        self.monitor.start()
        atexit.register(self.monitor.stop)  # after Ctrl-C too: the terminal is left as it was

    # for a sweeper that goes on from what its runs have shown ------------------------------------------

    def record(self, **facts: Any) -> None:
        """Keep facts of the sweep in ``sweep.json``, where the report finds them."""
        self.facts |= facts
        RunDirectory(self.root).write("sweep.json", self.facts)

    def expect(self, jobs: Sequence[Sequence[str]], more: int = 0) -> None:
        """Runs to come, by their overrides, and how many more there will be."""
        new = [name for name in map(self.cell, jobs) if name not in self.cells]
        self.cells.extend(dict.fromkeys(new))  # the same list that the monitor draws
        self._forget_refusals()
        self.record(expected=len(self.cells) + more)

    def cell(self, overrides: Sequence[str]) -> str:
        """The name of a run's directory."""
        return cell_name(self.config, overrides)

    def look(self, facts: dict[str, Any]) -> int:
        """The look that an earlier start of this sweep had come to; 1 for a new one, or under other rules."""
        until = self.before.get("until")
        if not isinstance(until, dict) or {k: until.get(k) for k in facts} != facts:
            return 1
        return min(max(int(until.get("look") or 1), 1), facts["looks"])

    def all_finished(self, jobs: Sequence[Sequence[str]]) -> bool:
        """Whether each of these runs has come to a result."""
        ends = {RunDirectory(self.root / self.cell(job)).status for job in jobs}
        return ends <= {"finished", "diverged"}

    def validation_bound(self, job: Sequence[str]) -> float:
        """Of a finished run, infinite where it has none."""
        figures = (RunDirectory(self.root / self.cell(job)).summary() or {}).get("val") or {}
        return next((float(figures[unit]["mean"]) for unit in UNITS if unit in figures), math.inf)

    def runs(self) -> list[RunDirectory]:
        """Of the cells that are known beforehand."""
        return [RunDirectory(self.root / cell) for cell in self.cells]

    def job_without_result(self, job: str, overrides: Sequence[str], state: str) -> float | None:
        """Say that a SLURM job ended before its run did, as by ``scancel``; what the run has to return."""
        run = RunDirectory(self.root / self.cell(overrides))
        if run.status not in ENDED:
            print(
                f"{run.path.name}: its SLURM job {job} ended without a result ({state}); "
                "the same command goes on with it",
                file=sys.stderr,
                flush=True,
            )
        return figure(run.summary(), self.config.optimized_metric)

    def _begin(self) -> None:
        """StorageError where nothing can be written; what is finished there is shown all the same."""
        try:
            self._forget_refusals()
            self.record(expected=len(self.cells))
        except StorageError:
            if self.cells and all(run.status == "finished" for run in self.runs()):
                from triptych.report.terminal import print_table

                print_table(self.root)
            raise

    def _forget_refusals(self) -> None:
        """What an earlier start was told, should it have been killed before it could read it."""
        for run in self.runs():
            with suppress(OSError):
                (run / REFUSED).unlink(missing_ok=True)

    def _read_refusals(self) -> None:
        for run in self.runs():
            with suppress(OSError):
                self.refused[run.path.name] = (run / REFUSED).read_text()
                (run / REFUSED).unlink()
        if self.refused:
            with suppress(StorageError):
                self.record(refused=self.refused)

    def _tell_other_code(self) -> None:
        """A line where results that are there are of other code: they are shown beside new ones."""
        finished = [run for run in self.runs() if run.status == "finished"]
        found = [said for said in map(changed_since, finished) if said]
        if found:
            print(
                f"{len(found)} of {len(self.cells)} runs finished before, under other {found[0]} than now; "
                "force=true runs them anew, the old directories are kept aside",
                file=sys.stderr,
                flush=True,
            )

    def __getstate__(self) -> dict:
        return {}  # launchers send the hook to their workers, where its thread is not needed and cannot go

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = (
            None  # the run's directory has it; a long sweep would keep all
        )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        self.monitor.stop()
        self._read_refusals()
        for run in self.runs():
            end, holder = _end(run)
            if end not in ENDED:
                print(f"{run.path.name}: {f'{holder} is running it' if holder else 'did not end'}")
        if said := write_report_or_say_why(self.root, len(self.cells), show=True):
            print(f"error: {said}", file=sys.stderr)


def write_report_or_say_why(root: Path, expected: int, show: bool = False) -> str:
    """Write, and with ``show`` print, the report; one line if that cannot be done, else "".

    What the runs have found does not depend on it, and so neither does a sweep's exit code.
    """
    from triptych.report.render import write_report
    from triptych.report.terminal import print_table

    report, said = None, ""
    try:
        report = write_report(root, expected=expected)
    except OSError as error:
        said = f"{root}: the report cannot be written ({error.strerror or error}); the runs' results are kept"
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        said = f"{root}: the report cannot be written ({what})"
    if show:
        try:
            print_table(root, report=report)
        except Exception as error:
            said = said or f"{root}: the report cannot be shown ({type(error).__name__}: {error})"
    return said


def _check_allocation(config: DictConfig) -> None:
    """A SLURM job's tasks are asked for once for the whole sweep, and must be the trainer's processes."""
    fixed = {"trainer", "trainer.devices", "trainer.num_nodes"}
    swept = {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)} & fixed
    if swept and _on_slurm(config):
        raise UserError(f"{min(swept)}: cannot vary within a SLURM sweep; a sweep for each value is accepted")


def _on_slurm(config: DictConfig) -> bool:
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")


def _check_ray(config: DictConfig) -> None:
    """Refuse a cluster's address that does not answer: Ray itself would try for minutes."""
    launcher = config.hydra.launcher
    if not str(launcher._target_).endswith("RayLauncher"):
        return
    address = launcher.ray.init.get("address")
    host, colon, port = str(address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # auto, local, none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        raise UserError(
            f"hydra.launcher.ray.init.address={address}: no answer from there ({error.strerror or error}); "
            "the address of a cluster that is up, auto or local is accepted"
        ) from error


def _is_grid(config: DictConfig) -> bool:
    return str(config.hydra.sweeper._target_).endswith(("BasicSweeper", "RoundsSweeper"))


def expected_cells(config: DictConfig) -> list[str]:
    """Names of the directories that a grid sweep will make, in order; empty for adaptive sweepers."""
    sweeper = config.hydra.sweeper
    if not _is_grid(config) or sweeper.get("tune"):
        return []
    return [cell_name(config, job) for job in grid(sweeper, list(config.hydra.overrides.task))]


def cell_name(config: DictConfig, overrides: Sequence[str]) -> str:
    """The name of the directory of the job that has these overrides, as Hydra will make it."""
    from hydra.core.utils import filter_overrides

    hidden = set(config.hydra.job.config.override_dirname.exclude_keys)
    shown = [o for o in filter_overrides(overrides) if o.lstrip("+~").split("=")[0] not in hidden]
    return slug(",".join(sorted(shown)))


class Monitor(threading.Thread):
    """Draws the progress of each run, about once a second, and updates the report when one has finished.

    Without a terminal it prints: a line whenever a run ends, and every ``tell`` seconds one of those at work.
    """

    def __init__(self, root: Path, cells: Sequence[str], every: float = 1.0, tell: float = 60.0):
        super().__init__(daemon=True)
        self.root, self.cells, self.every, self.tell = root, cells, every, tell
        self._halt = threading.Event()
        self._reported = -1

    def run(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if not console.is_terminal:
            return self._run_plain(console)
        with Live(self.table(), console=console, refresh_per_second=2, transient=True) as live:
            while not self._halt.wait(self.every):
                live.update(self.table())
                self._renew()

    def _run_plain(self, console: Any) -> None:
        """Without a terminal: a line whenever a run ends; at the end for those that had ended before."""

        def say(text: str) -> None:
            console.print(text, soft_wrap=True, markup=False, highlight=False)

        told: set[str] = set()
        seen: set[str] = set()
        said = time.monotonic()
        before: set[str] = set()  # another configuration's, for all that is known until their jobs have run
        while True:
            halted = self._halt.wait(self.every)
            for name in self.cells:
                run = RunDirectory(self.root / name)
                ended = run.status in ENDED
                before |= {name} if ended and name not in seen else set()
                seen.add(name)
                if name not in told and ended and (halted or name not in before):
                    from triptych.runs.summary import one_line

                    told.add(name)
                    if (run / REFUSED).exists():
                        continue
                    say(f"[{len(told)}/{len(self.cells)}] {name}: {one_line(run.summary() or {})}")
                    said = time.monotonic()
            if halted:
                return
            if time.monotonic() - said >= self.tell and (at_work := self._at_work()):
                say(f"[{len(told)}/{len(self.cells)}] {at_work}")
                said = time.monotonic()
            self._renew()

    def _at_work(self) -> str:
        """The runs that are at work, in one line; "" while none is."""
        known = ((name, RunDirectory(self.root / name)) for name in self.cells)
        found = [(name, run) for name, run in known if run.status not in ENDED]
        said = [f"{name}: {state(now)}" for name, run in found if (now := _progress(run)) and _alive(now)]
        more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        return "; ".join(said[:SHOWN]) + more

    def stop(self) -> None:
        """End the drawing; returns when the thread is done."""
        self._halt.set()
        self.join()

    def table(self) -> Any:
        """A rich table: one row a run."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from triptych.runs.summary import one_line

        head, names = short_names(self.cells)
        longest = max(map(len, names), default=3)
        table = Table(box=None, padding=(0, 1), title=f"{self.root.name}", title_justify="left")
        table.add_column(Text(head), no_wrap=True, min_width=min(24, longest), max_width=longest + 1)
        table.add_column("", no_wrap=True, min_width=11)
        table.add_column("", no_wrap=True)
        for cell, name in zip(self.cells, map(Text, names), strict=True):
            run = RunDirectory(self.root / cell)
            status, progress = run.status, _progress(run)
            if (run / REFUSED).exists():
                table.add_row(name, "[red]refused[/]", "holds another run")
            elif status in ENDED:
                style = {"finished": "green", "diverged": "yellow"}.get(status, "red")
                table.add_row(name, f"[{style}]{status}[/]", Text(one_line(run.summary() or {})[:70]))
            elif progress is None:
                table.add_row(name, "waiting", "", style="dim")
            else:
                bar = ProgressBar(total=progress["max_steps"], completed=progress["step"], width=11)
                table.add_row(name, bar, state(progress))
        return table

    def _renew(self) -> None:
        done = sum(RunDirectory(self.root / name).status in ENDED for name in self.cells)
        if done > max(self._reported, 0):
            self._reported = done
            write_report_or_say_why(self.root, len(self.cells))  # what is wrong is said at the end


def short_names(cells: Sequence[str]) -> tuple[str, list[str]]:
    """What cells are called in a table, and its heading: values alone where all name the same keys."""
    parts = [[part.partition("=") for part in cell.split(",")] for cell in cells]
    keys = {tuple(key for key, _, _ in one) for one in parts}
    if len(keys) != 1 or not all(equals for one in parts for _, equals, _ in one):
        return "run", list(cells)
    return ", ".join(keys.pop()), [", ".join(value for _, _, value in one) for one in parts]


def state(progress: dict) -> str:
    """ "fit 1200/4000, val 2.310, 35.1 steps/s, 1 min 20 s left", as far as it is known."""
    from triptych.report.words import duration, number

    stage = progress["stage"] if _alive(progress) else "stalled or interrupted"
    said = [f"{stage} {progress['step']}/{progress['max_steps']}"]
    if (bound := progress.get("bound")) is not None:
        said.append(f"val {number(bound)}")
    if (rate := progress.get("steps_per_second")) and _alive(progress):
        left = (progress["max_steps"] - progress["step"]) / rate
        said += [f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s a step", f"{duration(left)} left"]
    return ", ".join(said)


def _alive(progress: dict) -> bool:
    return time.time() - progress["updated"] < QUIET


def _progress(run: RunDirectory) -> dict | None:
    try:
        return json.loads((run / "progress.json").read_text())
    except (OSError, ValueError):
        return None
