"""Read a run directory; what cannot be understood makes the run "unreadable", with the reason in `error`.

And ``items.npz``: the bound of each item, for paired comparisons.
"""

from __future__ import annotations

import io
import math
import os
import time
import zipfile
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.config.identity import AXES, BUNDLES, role_in
from triptych.errors import UserError
from triptych.files import (
    check_directory,
    limit,
    load_object,
    open_regular,
    read_record,
    read_rows,
    walk,
)
from triptych.run.directory import ASIDE, PRUNE, RunDirectory, check_digests
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

if TYPE_CHECKING:
    import numpy as np

COLUMNS = 1000  # of metrics.csv
ITEMS = "items.npz"
STAMP = "%Y-%m-%dT%H:%M:%S%z"
HEADER = 4096  # bytes of an array's own description, at most
KINDS = "fiu"  # floats and whole numbers
STALE = 300.0  # seconds without a sign of life after which a run without a summary counts as interrupted


@dataclass(frozen=True)
class Position:
    """Progress of an unfinished run: `step` of `max_steps` in `stage`, at the unix time `updated`."""

    stage: str
    step: int
    max_steps: int
    updated: float
    bound: float = math.nan  # of validation
    steps_per_second: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Run(Result):
    """A run directory as plain data; unknown fields are empty, None or NaN.

    ``config`` by dotted keys; ``sources``: digest of the last code, ``code_changes`` between executions;
    ``fit_of``: the run of its sweep whose fit, and seconds of it, it has.
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
        """A key by which older runs come first, and before them those of which no start is recorded."""
        return self.started is not None, self.started

    @property
    def began(self) -> str:
        """Local time of the start, with its offset from UTC; "" where it is not recorded."""
        return f"{self.started:{STAMP}}" if self.started else ""

    @property
    def took(self) -> float:
        """Seconds that it computed: a fit that it took from another run cost it nothing."""
        return math.fsum(s for stage, s in self.seconds.items() if stage != "fit" or not self.fit_of)

    def __str__(self) -> str:
        return f"{self.name or self.dir.name}: {one_line(self)} ({self.dir})"

    @property
    def all_settings(self) -> dict[str, str]:
        """All settings by key: overrides first, then choices, then the rest of the configuration."""
        resolved = {key: value for key, value in self.config.items() if key not in self.choices}
        return {**self.overrides, **self.choices, **resolved}

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings that may change the result, by the role of each key; an undeclared key counts."""
        every = self.all_settings.items()
        return {k: value for k, value in every if role_in(self.config, k) in AXES or k in BUNDLES}

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Read steps and finite values of a column of `metrics.csv`; empty if there are none.

        UserError: the run has that column under a longer name, as train/loss for loss.
        """
        if known := self.histories((column,)):
            steps, values = known[column]
            return steps.tolist(), values.tolist()
        if longer := [name for name in self.histories() if name.endswith(f"/{column}")]:
            raise UserError(f"{column}: no such column in metrics.csv; use {' or '.join(longer)}")
        return [], []

    def histories(self, columns: Sequence[str] | None = None) -> dict[str, tuple[array[int], array[float]]]:
        """Read steps and values of several columns at once; None: of all columns."""
        histories: dict[str, tuple[array[int], array[float]]] = {}  # 16 bytes a value: there may be millions
        rows = read_rows(self.dir / "metrics.csv")
        header = next(rows, [])
        if "step" not in header:
            return {}
        at_step = header.index("step")
        wanted = [
            (i, name)
            for i, name in enumerate(header[:COLUMNS])
            if name != "step" and (columns is None or name in columns)
        ]
        for row in rows:
            # the last row may be half written while the run goes on
            if len(row) != len(header) or not math.isfinite(step := to_float(row[at_step])):
                continue
            for i, name in wanted:
                if row[i] and math.isfinite(value := to_float(row[i])):
                    steps, values = histories.setdefault(name, (array("q"), array("d")))
                    steps.append(int(step))
                    values.append(value)
        return histories


def find_runs(root: Path) -> list[Path]:
    """Return every run at or beneath `root` in natural order, but in hidden or old directories.

    A directory that may not be opened, or that is a link to a run's, is among them: `read_run` says so.
    """
    directories: list[Path] = []
    closed: list[Path] = []
    for here, entries in walk(root, refuse=lambda error: closed.append(Path(error.filename))):
        if any(entry.name in ("config.yaml", "summary.json") and not entry.is_dir() for entry in entries):
            directories.append(here)
            entries.clear()
        entries[:] = [one for one in entries if one.name[0] != "." and not ASIDE.search(one.name)]
        links = [here / one.name for one in entries if one.is_symlink()]
        directories += [link for link in links if _is_linked_run(link, root)]
    return sorted([*directories, *closed], key=lambda path: natural_key(str(path)))


def _is_linked_run(link: Path, root: Path) -> bool:
    """Return whether a link leads to a run that lies elsewhere; one beneath `root` is read where it lies."""
    return (link / "config.yaml").is_file() and not link.resolve().is_relative_to(root.resolve())


def is_run(directory: Path) -> bool:
    """Return whether a directory is a run's, or closed: other programs write files of these names too."""
    closed = not os.access(directory, os.R_OK | os.X_OK)
    ended = load_object(directory / "summary.json").get("status") in ENDED
    if closed or ended or (directory / "provenance.json").is_file():
        return True
    with suppress(UserError):
        return {"data._target_", "model._target_"} <= {*load_config(directory / "config.yaml")}
    return False


def read_runs(root: Path) -> list[Run]:
    """Read all runs beneath `root`, each with the sweep (`root`'s name) that it belongs to."""
    root, runs = Path(root), []
    sweep = root.resolve().name
    for path in find_runs(root):
        if path.is_symlink() and path != root:
            problem = "a link to a directory elsewhere, which is not read; move the directory itself here"
            runs.append(Run(dir=path, sweep=sweep, status="unreadable", error=problem))
        else:
            runs.append(read_run(path, sweep))
    return runs


def read_run(directory: Path, sweep: str = "", now: float | None = None) -> Run:
    """Read a run directory; `now` is the unix time against which a silent run counts as interrupted."""
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
        items = load_items(directory)
        if items and run.measure and math.isfinite(run.bound) and not read_items(directory, run.bound):
            problem = f"the mean of items.npz is {items.mean:g}"
            raise ValueError(f"test.{run.measure}.mean={run.bound:g}: {problem}")
        file = directory / run.samples if run.samples else None  # reports are published: no file outside
        inside = file is not None and file.resolve().is_relative_to(directory.resolve())
        return replace(run, samples=file if inside else None)
    except (OSError, ValueError) as error:
        return Run(**known | {"status": "unreadable", "error": f"summary.json: {error_line(error)}"})


def _provenance(provenance: Provenance) -> dict[str, Any]:
    """Return the fields of a run that its provenance knows, those of its result too before there is one."""
    names = ("commit", "dirty", "command", "started", "fit_of", "fingerprint", "split", "data_changed")
    overrides = parse_overrides([*provenance.overrides])
    return {name: getattr(provenance, name) for name in names} | {
        "overrides": overrides,
        "choices": {group: str(choice) for group, choice in provenance.choices.items()},
        "seed": to_int(overrides.get("seed")),
        "sources": provenance.last.sources,
        "host": provenance.last.host,
        "device": provenance.last.device,
        "code_changes": tuple(first_line(one.changed) for one in provenance.executions if one.changed),
    }


def read_position(directory: Path) -> Position | None:
    """Parse ``progress.json``; None if it is absent or malformed."""
    record = load_object(directory / "progress.json")
    numbers = [to_float(record.get(key)) for key in ("updated", "bound", "steps_per_second")]
    step, most = to_int(record.get("step")), to_int(record.get("max_steps"))
    if step is None or most is None or not math.isfinite(numbers[0]) or type(record.get("stage")) is not str:
        return None
    return Position(record["stage"], step, most, *numbers)


def _unfinished(known: dict[str, Any], directory: Path, now: float) -> Run:
    progress, alive, abandoned = read_position(directory), 0.0, False
    with suppress(OSError):
        alive = (directory / "config.yaml").stat().st_mtime
    alive = progress.updated if progress else alive
    with suppress(OSError), open(directory / ".lock", encoding="utf-8", errors="replace") as file:
        pid = pid_of(who := file.read(1000).strip())
        abandoned = not who or (pid is not None and not lives(pid))  # it has left, or ended on this machine
    running = now - alive < STALE and not abandoned
    ended: Status = "pruned" if (directory / PRUNE).exists() else "interrupted"  # by a search
    return Run(**known, status="running" if running else ended, progress=progress)


@dataclass(frozen=True)
class Items:
    """Bound of each test item in the reported unit, (n,) float64, in the order of `index`, (n,) int64."""

    index: np.ndarray
    total: np.ndarray

    @cached_property
    def mean(self) -> float:
        return float(self.total.mean())


def read_items(directory: Path, bound: float) -> Items | None:
    """Read the items if their mean is the run's test `bound`; None if absent, damaged or of another run."""
    items = load_items(directory)
    if items is None or not math.isclose(items.mean, bound, rel_tol=1e-5, abs_tol=1e-5):
        return None
    return items


def load_items(directory: Path) -> Items | None:
    """Read the items of a run without comparing them with its bound; None if absent or damaged."""
    path = f"{directory}/{ITEMS}"
    try:
        return _load(path, os.stat(path).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)  # a report reads each file once for each pair; 160 kB each at 10,000 items
def _load(path: str, _written: int) -> Items | None:
    import numpy as np  # which a mistake typed at a command does without

    arrays = read_arrays(path, ("index", "total"))
    if arrays is None:
        return None
    index, total = arrays["index"], arrays["total"].astype(np.float64)
    order = np.argsort(index)
    index, total = index[order], total[order]
    if len(index) < 2 or not (index[1:] > index[:-1]).all() or not np.isfinite(total).all():
        return None
    return Items(index, total)


def read_arrays(file: str | Path, names: Sequence[str], square: str = "") -> dict[str, np.ndarray] | None:
    """Read the arrays ``names`` (n,) of equal length, ``square`` (n, n); None if damaged or of another kind.

    Nothing is unpickled, and all of them together are below TRIPTYCH_MAX_ITEMS once unpacked.
    """
    import numpy as np  # which a mistake typed at a command does without

    arrays = {}
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            entries = {name: archive.getinfo(f"{name}.npy") for name in names}
            if sum(entry.file_size for entry in entries.values()) > limit("TRIPTYCH_MAX_ITEMS"):
                return None
            for name, entry in entries.items():
                with archive.open(entry) as member:
                    data = io.BytesIO(member.read(entry.file_size + 1))  # more than it claims is not read
                arrays[name] = array = np.load(data, allow_pickle=False, max_header_size=HEADER)
                if array.dtype.kind not in KINDS or array.ndim != (2 if name == square else 1):
                    return None
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds
        return None
    return arrays if len({n for array in arrays.values() for n in array.shape}) == 1 else None
