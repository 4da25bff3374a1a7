"""Read run directories as plain data, for reports.

A malformed file makes the run's status "unreadable", with the reason in `error`.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from triptych.config.identity import AXES, BUNDLES, role_in
from triptych.errors import UserError
from triptych.files import check_directory, load_object, read_record, read_rows, walk
from triptych.records import Entries
from triptych.run.directory import ASIDE, PRUNE, RunDirectory
from triptych.run.parsing import (
    error_line,
    first_line,
    load_config,
    natural_key,
    parse_overrides,
    to_float,
    to_int,
)
from triptych.run.processes import is_alive, parse_local_pid
from triptych.run.provenance_file import Provenance
from triptych.run.result import ENDED, Result, Status, result_line

GAMMA_MIN, TERM = "schedule.gamma_min", "bpd_reconstruction"
COLUMNS = 1000  # maximum number of columns of metrics.csv that are read
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
STALE_SECONDS = 300.0  # seconds without update of progress.json until a run counts as interrupted


@dataclass(frozen=True)
class Position:
    """How far an unfinished run is: at `step` of `max_steps` in `stage`, at unix time `updated`."""

    stage: str
    step: int
    max_steps: int
    updated: float
    bound: float = math.nan  # the last validation bound
    steps_per_second: float = math.nan

    @property
    def fraction(self) -> float:
        """The finished part of the stage; 0 if its length is not known."""
        return self.step / self.max_steps if self.max_steps else 0.0


@dataclass(frozen=True, kw_only=True)
class Run(Result):
    """A run directory as plain data; unknown fields are empty, None or NaN.

    Attributes:
        id: identifies the run, also in a copy of its directory.
        config: {dotted key: value as text}.
        fit_of: the run of the same sweep from which the fit and its seconds were copied, or "".
        source, source_digest: the other run or file from which the run took weights, if any, and
            a digest of these weights.
    """

    dir: Path
    sweep: str = ""
    progress: Position | None = None
    id: str = ""
    host: str = ""
    commit: str = ""
    dirty: bool = False
    command: Sequence[str] = ()
    started: datetime | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    fit_of: str = ""
    source: str = ""
    source_digest: str = ""

    @property
    def age(self) -> tuple[bool, datetime | None]:
        """A key to sort runs by their start: runs without a recorded start, then oldest first."""
        return self.started is not None, self.started

    @property
    def start_time(self) -> str:
        """The local time of the start with its UTC offset; "" if it is not recorded."""
        return f"{self.started:{TIME_FORMAT}}" if self.started else ""

    @property
    def computing_seconds(self) -> float:
        """Seconds of computing of this run, without a fit that was copied from another run."""
        seconds = dict(self.seconds)
        if self.fit_of:
            seconds.pop("fit", None)
        return math.fsum(seconds.values())

    def __str__(self) -> str:
        return f"{self.name or self.dir.name}: {result_line(self)} ({self.dir})"

    @property
    def all_settings(self) -> dict[str, str]:
        """{key: value} of all settings: overrides, choices of groups, and the configuration."""
        resolved = {key: value for key, value in self.config.items() if key not in self.choices}
        return {**self.overrides, **self.choices, **resolved}

    @cached_property
    def settings(self) -> dict[str, str]:
        """{key: value} of the settings that may change the result, judged by their keys' roles.

        Keys that the project does not declare are included.
        """
        return {
            key: value
            for key, value in self.all_settings.items()
            if key in BUNDLES or role_in(self.config, key) in AXES
        }

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Read steps and finite values of a column of `metrics.csv`; empty if there are none."""
        steps, values = self.histories((column,)).get(column, (array("q"), array("d")))
        return steps.tolist(), values.tolist()

    def histories(
        self, columns: Sequence[str] | None = None
    ) -> dict[str, tuple[array[int], array[float]]]:
        """Read {column: (steps, finite values)} from `metrics.csv`, by default for all columns."""
        rows = read_rows(self.dir / "metrics.csv")
        header = next(rows, [])
        places = {name: i for i, name in enumerate(header[:COLUMNS])}
        place_of_step = places.pop("step", None)
        if place_of_step is None:
            return {}
        names = [name for name in places if columns is None or name in columns]
        # Arrays need only 16 bytes per step and value, and there may be millions.
        histories = {name: (array("q"), array("d")) for name in names}
        for row in rows:
            if len(row) != len(header):  # A running run may be in the middle of writing a row.
                continue
            step = to_float(row[place_of_step])
            for name, (steps, values) in histories.items():
                value = to_float(row[places[name]])
                if math.isfinite(step) and math.isfinite(value):
                    steps.append(int(step))
                    values.append(value)
        return {name: history for name, history in histories.items() if history[0]}


def find_runs(root: Path) -> list[Path]:
    """Return the run directories at or beneath `root`, in natural order of their names.

    This includes directories that cannot be opened; `read_run` then returns the reason.
    """
    directories: list[Path] = []
    closed: list[Path] = []
    for here, entries in walk(root, on_error=lambda error: closed.append(Path(error.filename))):
        if any(
            entry.name in ("config.yaml", "summary.json") and not entry.is_dir()
            for entry in entries
        ):
            directories.append(here)
            entries.clear()
        entries[:] = [entry for entry in entries if not _is_hidden(entry.name)]
    return sorted([*directories, *closed], key=lambda path: natural_key(str(path)))


def _is_hidden(name: str) -> bool:
    """Return whether a directory is hidden, or holds a run that another has replaced."""
    return name.startswith(".") or ASIDE.search(name) is not None


def is_run(directory: Path) -> bool:
    """Return whether a directory is a run's; True also if it cannot be opened.

    Files named config.yaml or summary.json are not sufficient, as other programs write them too.
    """
    closed = not os.access(directory, os.R_OK | os.X_OK)
    ended = load_object(directory / "summary.json").get("status") in ENDED
    if closed or ended or (directory / "provenance.json").is_file():
        return True
    with suppress(UserError):
        return {"data._target_", "model._target_"} <= {*load_config(directory / "config.yaml")}
    return False


def read_runs(root: Path) -> list[Run]:
    """Read all runs at or beneath `root`; the name of `root` becomes their sweep's name."""
    root = Path(root)
    sweep = root.resolve().name
    return [read_run(path, sweep) for path in find_runs(root)]


def read_run(directory: Path, sweep: str = "", now: float | None = None) -> Run:
    """Read a run directory.

    `now` is the current unix time, to decide whether an unfinished run is running or interrupted.
    """
    directory, place = Path(directory), RunDirectory(directory)
    known: Entries = {"dir": directory, "sweep": sweep}
    try:
        check_directory(place.path)
        known |= _provenance_fields(place.provenance)
        known["config"] = load_config(place / "config.yaml")
        record = read_record(place / "summary.json")
    except UserError as error:
        reason = first_line(error).removeprefix(f"{place.path}/")
        return Run(**known, status="unreadable", error=reason)
    if record is None:
        return _unfinished_run(known, directory, time.time() if now is None else now)
    try:
        run = Run.from_json(record, **known)
    except (OSError, ValueError) as error:
        return Run(
            **known | {"status": "unreadable", "error": f"summary.json: {error_line(error)}"}
        )
    return replace(run, samples=_samples_picture(run))


def reconstruction_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a note if a run's reconstruction term is 1 bit/dim or more: z_0 is then too noisy."""
    costs = [run.test[TERM].mean for run in runs if GAMMA_MIN in run.config and TERM in run.test]
    cost = max(costs, default=0.0)
    if cost >= 1:
        yield (
            f"Reconstruction costs {cost:.1f} bits/dim; a lower {GAMMA_MIN}, as VDM's -13.3, makes "
            "this term small."
        )


def _samples_picture(run: Run) -> Path | None:
    """Return the path of the picture of samples; None if it is outside the run's directory.

    Reports are published, so an untrusted run must not add other files to them.
    """
    if run.samples is None:
        return None
    file = run.dir / run.samples
    if not file.resolve().is_relative_to(run.dir.resolve()):
        return None
    return file


def _provenance_fields(provenance: Provenance) -> Entries:
    """Return the fields of a ``Run`` that follow from its provenance.

    Where the run has a result, the result's fields replace some of them.
    """
    names = (
        "id",
        "commit",
        "dirty",
        "command",
        "started",
        "fit_of",
        "source",
        "source_digest",
        "fingerprint",
        "split",
        "data_changed",
    )
    overrides = parse_overrides([*provenance.overrides])
    return {name: getattr(provenance, name) for name in names} | {
        "overrides": overrides,
        "choices": {group: str(choice) for group, choice in provenance.choices.items()},
        "seed": to_int(overrides.get("seed")),
        "host": provenance.last.host,
        "device": provenance.last.device,
    }


def read_position(directory: Path) -> Position | None:
    """Parse ``progress.json``; return None if it is missing or malformed."""
    record = load_object(directory / "progress.json")
    numbers = {key: to_float(record.get(key)) for key in ("updated", "bound", "steps_per_second")}
    step, max_steps = to_int(record.get("step")), to_int(record.get("max_steps"))
    if step is None or max_steps is None or not math.isfinite(numbers["updated"]):
        return None
    return Position(str(record.get("stage")), step, max_steps, **numbers)


def _unfinished_run(provenance_fields: Entries, directory: Path, now: float) -> Run:
    """Return a ``Run`` without a result: it is running, pruned by a search, or interrupted."""
    position = read_position(directory)
    status: Status = "interrupted"
    if now - _last_update_time(directory, position) < STALE_SECONDS and not _is_abandoned(
        directory
    ):
        status = "running"
    elif (directory / PRUNE).exists():
        status = "pruned"
    return Run(**provenance_fields, status=status, progress=position)


def _last_update_time(directory: Path, position: Position | None) -> float:
    """Return the unix time of a run's last progress, or else of its ``config.yaml``."""
    if position is not None:
        return position.updated
    with suppress(OSError):
        return (directory / "config.yaml").stat().st_mtime
    return 0.0


def _is_abandoned(directory: Path) -> bool:
    """Return whether no process works on a run, according to its lock file.

    The file is then empty, or names a process that has ended.
    """
    with suppress(OSError), open(directory / ".lock", encoding="utf-8", errors="replace") as file:
        owner = file.read(1000).strip()
        pid = parse_local_pid(owner)
        return not owner or (pid is not None and not is_alive(pid))
    return False
