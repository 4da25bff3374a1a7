"""Write ``metrics.csv``: one row per step, one column per metric, exact across kill and resume.

Select what the other loggers get beside it: configuration, figures and panels of a result.
"""

import contextlib
import csv
import io
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.identity import leaves
from triptych.files import read_rows
from triptych.run.directory import RunDirectory, atomic, log_line, write_end
from triptych.run.parsing import format_value
from triptych.run.result import Result

OPEN = 8  # of the last rows, which may still gain figures
SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # as metrics.csv names them
NOT_FIGURES = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics", "versions")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # of what a run is
NOT_PARAMETERS = ("logger", "paths")
RESOLVED = "resolved"  # the key below which W&B has the resolved configuration


class MetricsCsv(Logger):
    """A Lightning logger that appends to a table, at most once in ``every`` seconds.

    Figures of a step are merged into its row. The last ``OPEN`` rows are held and written again when they
    change; a new column, or a figure of a step further back, takes a rewrite of the whole table. A run that
    resumes at step s drops the rows after s, so each step stands once. ``time`` is the seconds of fitting
    that led to the row, by ``clock``.
    """

    name, version = "csv", ""

    def __init__(self, path: Path, clock: Callable[[], float], every: float = 2.0):
        super().__init__()
        self.path, self.clock, self.every = path, clock, every
        self._columns: list[str] = []  # of the file
        self.rows: dict[int, dict[str, Any]] = {}  # by step: those that are held
        self._closed, self._end = -1, 0  # step of the last row that is not, and where it ends, in bytes
        self._written = time.monotonic()

    def keep_until(self, step: int) -> None:
        """Keep the rows up to ``step``, the last of them held; print a warning if some are damaged."""
        damaged: list[int] = []
        kept = deque(self._stored(step, damaged), OPEN + 1)
        self._columns, self._end = [], 0
        self._closed = kept.popleft()[0] if len(kept) > OPEN else -1
        self.rows = dict(kept)
        if damaged:
            log_line(None, f"{self.path}: {len(damaged)} of its rows are damaged and left out")

    def _stored(self, until: int, damaged: list[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the file's rows up to a step, one at a time; append what is damaged, or not in order."""
        table, before = read_rows(self.path), -1
        header = next(table, [])
        for number, cells in enumerate(table):
            row: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            at = row.pop("step", "")
            whole = len(cells) == len(header) and at.isdecimal() and len(at) < 19
            if not whole or int(at) <= before or any(map(_is_text, row.values())):
                if damaged is not None:
                    damaged.append(number)
            elif int(at) <= until:
                before = int(at)
                yield before, row

    def all_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield all rows in order: those of the file that are closed, with what is held."""
        held = dict(sorted(self.rows.items()))
        for step, row in self._stored(self._closed):
            for earlier in [other for other in held if other < step]:
                yield earlier, held.pop(earlier)
            yield step, row | held.pop(step, {})
        yield from held.items()

    @property
    def last(self) -> tuple[int, dict[str, Any]]:
        """Return the last step with a row, and a copy of that row; 0 and {} if there is none."""
        step = max(self.rows, default=0)
        return step, dict(self.rows.get(step, {}))

    def time(self, step: int) -> dict[str, Any]:
        """Return {"time": seconds of fitting} of a step's row; {} if there is none."""
        row = self.rows.get(step, {})
        return {"time": float(row["time"])} if "time" in row else {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(step or 0, {})
        row.setdefault("time", round(self.clock(), 3))
        row.update({k: v for k, v in metrics.items() if k != "epoch"})

    def save(self) -> None:
        """Write the table if the last write is long enough ago; Lightning calls this at every row."""
        if time.monotonic() - self._written > self.every:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write what has changed now, unless there are no rows."""
        if not self.rows and not self.path.exists():
            return
        new = {name for row in self.rows.values() for name in row} - {*self._columns}
        cut = not self.path.exists() or self.path.stat().st_size < self._end  # by somebody else
        if new or not self._columns or min(self.rows, default=0) <= self._closed or cut:
            self._rewrite()
        else:
            rows = sorted(self.rows.items())
            closed, held = (_lines(self._columns, some) for some in (rows[:-OPEN], rows[-OPEN:]))
            write_end(self.path, self._end, closed + held)
            self._hold(rows, self._end + len(closed))
        self._written = time.monotonic()

    def _rewrite(self) -> None:
        """Write the whole table anew, a row at a time."""
        names = dict.fromkeys(name for _, row in self.all_rows() for name in row)
        columns = ["step", *names]
        last: deque[tuple[int, dict[str, Any]]] = deque(maxlen=OPEN + 1)
        with atomic(self.path) as file:
            file.write(_lines(columns, [], header=True))
            for step, row in self.all_rows():
                file.write(_lines(columns, [(step, row)]))
                last.append((step, row))
            held = _lines(columns, [*last][-OPEN:])
            end = file.tell() - len(held)
        self._columns = columns
        self._hold([*last], end)

    def _hold(self, rows: list[tuple[int, dict[str, Any]]], end: int) -> None:
        """Hold the last of ``rows``, which begin at the byte ``end`` of the file; the others are closed."""
        self.rows, self._end = dict(rows[-OPEN:]), end
        self._closed = rows[-OPEN - 1][0] if len(rows) > OPEN else self._closed

    def finalize(self, status: str) -> None:
        self.flush()


def _lines(columns: list[str], rows: Iterable[tuple[int, dict[str, Any]]], header: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({"step": step} | row for step, row in rows)
    return text.getvalue().encode()


def _is_text(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return True
    return False


def sweep_of(run: RunDirectory) -> str | None:
    """Return the name of the sweep that a run belongs to; None if it belongs to none."""
    folder = run.path.parent
    return folder.name if (folder / "sweep.json").exists() else None


def comparable(
    choices: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the settings to group and filter runs by: "objective": "v", "optimizer/lr": 0.01.

    Choices, seed, setting and typed keys, with "/" for ".": W&B cannot filter by a key with a dot in it.
    """
    flat = {group: c for group, c in choices.items() if group not in NO_CHOICE and c is not None}
    flat |= {key: config[key] for key in ("seed", "setting") if config.get(key) is not None}
    typed = {o.lstrip("+~").partition("=")[0] for o in overrides}
    return flat | {
        key.replace(".", "/"): value
        for key, value in leaves(dict(config))
        if key in typed and "." in key and key.split(".")[0] not in NOT_PARAMETERS
    }


def parameters(run: RunDirectory) -> dict[str, Any]:
    """Flatten a run's configuration ("optimizer.lr") and its choices ("objective")."""
    config, choices = run.config(), run.provenance.choices
    flat = {k: v for k, v in leaves(config) if k.split(".")[0] not in NOT_PARAMETERS}
    flat |= comparable(choices, config)
    return {k: v if isinstance(v, int | float) else format_value(v) for k, v in flat.items()}


def flat_figures(record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten ``summary.json``: "test/bpd", "test/bpd_stderr", "test/bpd_n", "measures/..."."""
    own = (item for item in record.items() if item[0] not in NOT_FIGURES)
    return {name: x for key, value in own for name, x in _flatten(value, key, SPLITS.get(key, f"{key}/"))}


def flat_numbers(summary: Result | None, logged: Collection[str] = ()) -> dict[str, float]:
    """Return the numbers of a summary that are not ``logged`` yet; {} without a summary."""
    flat = flat_figures(summary.record) if summary else {}
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and k not in logged}


def _flatten(value: Any, name: str, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and {"mean", "n"} <= {*value}:  # its mean has its name, the rest a suffix
        yield name, value["mean"]
        yield from ((f"{name}_{k}", v) for k, v in value.items() if k != "mean" and v is not None)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}{key}", f"{prefix}{key}/")
    elif value is not None and not isinstance(value, list):
        yield name, value


def panel_tables(record: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return {"panels/noise_levels": (columns, rows), ...}: the curves of a summary."""
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
    for key, value in record.items():
        columns = [*value.values()] if isinstance(value, dict) else []
        lists = bool(columns) and all(isinstance(column, list) and column for column in columns)
        if lists and not any(isinstance(one, list | dict) for column in columns for one in column):
            with contextlib.suppress(ValueError):  # columns of several lengths
                rows = [list(row) for row in zip(*columns, strict=True)]
                tables[f"panels/{key}"] = ([*value], rows)
    return tables
