"""Read a run directory as plain data.

A record that cannot be understood makes the run "unreadable", with the reason in `error`.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from triptych.config.identity import AXES, BUNDLES, role_in
from triptych.errors import UserError
from triptych.files import check_directory, load_object, read_record, read_rows, walk
from triptych.run.directory import ASIDE, PRUNE, RunDirectory, check_digests
from triptych.run.items import load_items
from triptych.run.parsing import (
    error_line,
    first_line,
    load_config,
    natural_key,
    parse_overrides,
    to_float,
    to_int,
)
from triptych.run.processes import lives, pid_of
from triptych.run.provenance_file import Provenance
from triptych.run.result import ENDED, Result, Status, one_line

COLUMNS = 1000  # most columns of metrics.csv that are read
STAMP = "%Y-%m-%dT%H:%M:%S%z"
STALE = 300.0  # seconds without a write after which a run counts as interrupted


@dataclass(frozen=True)
class Position:
    """Progress of an unfinished run: `step` of `max_steps` in `stage`, at unix time `updated`."""

    stage: str
    step: int
    max_steps: int
    updated: float
    bound: float = math.nan  # the last validation bound
    steps_per_second: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Run(Result):
    """A run directory as plain data; unknown fields are empty, None or NaN.

    Attributes:
        config: values by dotted keys.
        sources: digest of the code of its last start. code_changes: one line for each start under
            other code.
        fit_of: the run of its sweep whose fit, and seconds of it, it has.
    """

    dir: Path
    sweep: str = ""
    progress: Position | None = None
    host: str = ""
    commit: str = ""
    dirty: bool = False
    command: Sequence[str] = ()
    started: datetime | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    sources: str = ""
    code_changes: tuple[str, ...] = ()
    fit_of: str = ""

    @property
    def age(self) -> tuple[bool, datetime | None]:
        """A sort key: runs without a recorded start come first, then the others from old to new."""
        return self.started is not None, self.started

    @property
    def began(self) -> str:
        """Local time of the start, with its offset from UTC; "" if it is not recorded."""
        return f"{self.started:{STAMP}}" if self.started else ""

    @property
    def took(self) -> float:
        """Seconds that the run has computed, without a fit taken from another run."""
        seconds = dict(self.seconds)
        if self.fit_of:
            seconds.pop("fit", None)
        return math.fsum(seconds.values())

    def __str__(self) -> str:
        return f"{self.name or self.dir.name}: {one_line(self)} ({self.dir})"

    @property
    def all_settings(self) -> dict[str, str]:
        """All settings by key: overrides, then choices, then the rest of the configuration."""
        resolved = {key: value for key, value in self.config.items() if key not in self.choices}
        return {**self.overrides, **self.choices, **resolved}

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings that may change the result, by the roles of their keys.

        Undeclared keys are among them.
        """
        return {key: value for key, value in self.all_settings.items() if self._may_matter(key)}

    def _may_matter(self, key: str) -> bool:
        return key in BUNDLES or role_in(self.config, key) in AXES

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Read steps and finite values of a column of `metrics.csv`; empty if there are none."""
        steps, values = self.histories((column,)).get(column, (array("q"), array("d")))
        return steps.tolist(), values.tolist()

    def histories(self, columns: Sequence[str] | None = None) -> dict[str, tuple[array[int], array[float]]]:
        """Read steps and values of several columns at once; of all columns by default."""
        rows = read_rows(self.dir / "metrics.csv")
        header = next(rows, [])
        if "step" not in header[:COLUMNS]:
            return {}
        places = {name: i for i, name in enumerate(header[:COLUMNS])}
        place_of_step = places.pop("step")
        for name in places.keys() - (places if columns is None else columns):
            del places[name]
        # An array takes 16 bytes per value, and there may be millions.
        histories = {name: (array("q"), array("d")) for name in places}
        for row in rows:
            if len(row) != len(header):  # the last row may be half written in a running run
                continue
            step = to_float(row[place_of_step])
            for name, place in places.items():
                value = to_float(row[place]) if row[place] else math.nan
                if math.isfinite(step) and math.isfinite(value):
                    histories[name][0].append(int(step))
                    histories[name][1].append(value)
        return {name: history for name, history in histories.items() if history[0]}


def find_runs(root: Path) -> list[Path]:
    """Find the runs at or beneath `root`, in natural order, without hidden and old ones.

    A directory that may not be opened, or a link to a run's directory, is included: `read_run`
    reports it.
    """
    directories: list[Path] = []
    closed: list[Path] = []
    for here, entries in walk(root, refuse=lambda error: closed.append(Path(error.filename))):
        if any(entry.name in ("config.yaml", "summary.json") and not entry.is_dir() for entry in entries):
            directories.append(here)
            entries.clear()
        entries[:] = [entry for entry in entries if not _is_hidden(entry.name)]
        directories += _linked_runs(here, entries, root)
    return sorted([*directories, *closed], key=lambda path: natural_key(str(path)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or ASIDE.search(name) is not None


def _linked_runs(here: Path, entries: Sequence[os.DirEntry[str]], root: Path) -> list[Path]:
    """Return the links to runs elsewhere; a run beneath `root` is read in its own place."""
    links = [here / entry.name for entry in entries if entry.is_symlink()]
    runs = [link for link in links if (link / "config.yaml").is_file()]
    return [link for link in runs if not link.resolve().is_relative_to(root.resolve())]


def is_run(directory: Path) -> bool:
    """Return whether a directory is a run's, or cannot be opened and may be one.

    Files named config.yaml or summary.json are not enough, because other programs write them, too.
    """
    closed = not os.access(directory, os.R_OK | os.X_OK)
    ended = load_object(directory / "summary.json").get("status") in ENDED
    if closed or ended or (directory / "provenance.json").is_file():
        return True
    with suppress(UserError):
        return {"data._target_", "model._target_"} <= {*load_config(directory / "config.yaml")}
    return False


def read_runs(root: Path) -> list[Run]:
    """Read all runs beneath `root`, each with `root`'s name as its sweep."""
    root = Path(root)
    sweep = root.resolve().name
    return [_read_inside(path, root, sweep) for path in find_runs(root)]


def _read_inside(path: Path, root: Path, sweep: str) -> Run:
    if path == root or not path.is_symlink():
        return read_run(path, sweep)
    problem = "a link to a directory elsewhere, which is not read; move the directory itself here"
    return Run(dir=path, sweep=sweep, status="unreadable", error=problem)


def read_run(directory: Path, sweep: str = "", now: float | None = None) -> Run:
    """Read a run directory.

    A run that has been silent for long at the unix time `now` counts as interrupted.
    """
    directory, place = Path(directory), RunDirectory(directory)
    known: dict[str, Any] = {"dir": directory, "sweep": sweep}
    try:
        check_directory(place.path)
        known |= _provenance(place.provenance)
        known["config"] = load_config(place / "config.yaml")
        record = read_record(place / "summary.json")
    except UserError as error:
        reason = first_line(error).removeprefix(f"{place.path}/")
        return Run(**known, status="unreadable", error=reason)
    if record is None:
        return _unfinished(known, directory, time.time() if now is None else now)
    try:
        run = Run.from_json(record, **known)
        check_digests(directory, run.digests)
        _check_items(run)
    except (OSError, ValueError) as error:
        return Run(**known | {"status": "unreadable", "error": f"summary.json: {error_line(error)}"})
    return replace(run, samples=_picture(run))


def _check_items(run: Run) -> None:
    """Raise ValueError if the mean of the run's items differs from its bound."""
    items = load_items(run.dir)
    if items is not None and math.isfinite(run.bound) and not items.have_mean(run.bound):
        raise ValueError(f"test.{run.measure}.mean={run.bound:g}: the mean of items.npz is {items.mean:g}")


def _picture(run: Run) -> Path | None:
    """Return the path of the samples' picture; None if it leads outside the run.

    Reports are published, so they must not contain files from elsewhere.
    """
    if run.samples is None:
        return None
    file = run.dir / run.samples
    if not file.resolve().is_relative_to(run.dir.resolve()):
        return None
    return file


def _provenance(provenance: Provenance) -> dict[str, Any]:
    """Return the fields of a run from its provenance; some of them are replaced by a result."""
    names = ("commit", "dirty", "command", "started", "fit_of", "fingerprint", "split", "data_changed")
    overrides = parse_overrides([*provenance.overrides])
    changes = [start.changed for start in provenance.executions if start.changed]
    return {name: getattr(provenance, name) for name in names} | {
        "overrides": overrides,
        "choices": {group: str(choice) for group, choice in provenance.choices.items()},
        "seed": to_int(overrides.get("seed")),
        "sources": provenance.last.sources,
        "host": provenance.last.host,
        "device": provenance.last.device,
        "code_changes": tuple(map(first_line, changes)),
    }


def read_position(directory: Path) -> Position | None:
    """Parse ``progress.json``; None if it is absent or malformed."""
    record = load_object(directory / "progress.json")
    numbers = {key: to_float(record.get(key)) for key in ("updated", "bound", "steps_per_second")}
    step, max_steps = to_int(record.get("step")), to_int(record.get("max_steps"))
    if step is None or max_steps is None or math.isnan(numbers["updated"]):
        return None
    return Position(str(record.get("stage")), step, max_steps, **numbers)


def _unfinished(known: dict[str, Any], directory: Path, now: float) -> Run:
    """Return a run without a result: one that is running, pruned by a search, or interrupted."""
    position = read_position(directory)
    status: Status = "interrupted"
    if now - _last_sign(directory, position) < STALE and not _is_abandoned(directory):
        status = "running"
    elif (directory / PRUNE).exists():
        status = "pruned"
    return Run(**known, status=status, progress=position)


def _last_sign(directory: Path, position: Position | None) -> float:
    """Return the unix time of a run's last write."""
    if position is not None:
        return position.updated
    with suppress(OSError):
        return (directory / "config.yaml").stat().st_mtime
    return 0.0


def _is_abandoned(directory: Path) -> bool:
    """Return whether the process of a run has left it, or has ended on this machine."""
    with suppress(OSError), open(directory / ".lock", encoding="utf-8", errors="replace") as file:
        owner = file.read(1000).strip()
        pid = pid_of(owner)
        return not owner or (pid is not None and not lives(pid))
    return False
