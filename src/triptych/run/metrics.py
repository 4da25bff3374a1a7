"""Write ``metrics.csv``: one row per step, one column per metric, exact across kill and resume.

Select what the other loggers get beside it: configuration, figures and panels of a result.
"""

import contextlib
import csv
import io
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.identity import leaves
from triptych.files import read_rows
from triptych.run.directory import RunDirectory, log_line, write_atomic, write_end
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
        """Hold the rows up to ``step`` for the next write; print a warning if some are damaged."""
        if damaged := self._read(step):
            log_line(None, f"{self.path}: {damaged} of its rows are damaged and left out")

    def _read(self, until: float) -> int:
        """Merge the file's rows up to a step into those that are held; return how many are damaged."""
        rows = read_rows(self.path)
        header, damaged, read = next(rows, []), 0, {}
        for cells in rows:
            row = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            at = row.pop("step", "")
            if len(cells) != len(header) or not at.isdecimal() or any(map(_is_text, row.values())):
                damaged += 1
            elif len(at) < 19 and int(at) <= until:
                read[int(at)] = row
        merged = read.keys() | self.rows.keys()
        self.rows = {step: read.get(step, {}) | self.rows.get(step, {}) for step in sorted(merged)}
        self._columns, self._closed, self._end = [], -1, 0
        return damaged

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
        columns = self._columns
        new = {name for row in self.rows.values() for name in row} - {*columns}
        cut = not self.path.exists() or self.path.stat().st_size < self._end  # by somebody else
        whole = new or not columns or min(self.rows, default=0) <= self._closed or cut
        if whole:
            if columns:
                self._read(self._closed)
            columns = ["step", *dict.fromkeys(name for row in self.rows.values() for name in row)]
        rows = sorted(self.rows.items())
        closed, held = (_lines(columns, some) for some in (rows[:-OPEN], rows[-OPEN:]))
        if whole:
            closed = _lines(columns, [], header=True) + closed
            write_atomic(self.path, closed + held)
        else:
            write_end(self.path, self._end, closed + held)
        self._columns, self.rows, self._end = columns, dict(rows[-OPEN:]), self._end + len(closed)
        self._closed = rows[-OPEN - 1][0] if len(rows) > OPEN else self._closed
        self._written = time.monotonic()

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
