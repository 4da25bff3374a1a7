"""Write ``metrics.csv``, and convert configurations and results for the other loggers.

The table has one row per step and one column per metric. After a kill and resume it is the same as
without.
"""

import csv
import io
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.identity import flatten_config
from triptych.files import read_rows
from triptych.records import Entries
from triptych.run.directory import RunDirectory, atomic, replace_file_end
from triptych.run.parsing import format_value
from triptych.run.result import Result

OPEN_ROWS = 8  # number of rows at the end of the table that may still gain values
MAX_STEP_DIGITS = 18  # maximum number of digits of a step
SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # prefixes in metrics.csv
# Entries of summary.json that are not logged as metrics.
NOT_METRICS = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics", "versions")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # config groups that do not distinguish runs
NOT_PARAMETERS = ("logger", "paths")  # config groups that are not logged as hyperparameters
RESOLVED = "resolved"  # W&B gets the resolved configuration under this key


class MetricsCsv(Logger):
    """A Lightning logger that writes a CSV table, at most once in ``every`` seconds.

    Values of the same step are merged into one row. The last ``OPEN_ROWS`` rows are kept in memory
    (held) and written again when they change; earlier rows are closed. A new column, or a value for
    a closed row, requires a rewrite of the whole table. A run that resumes at step s drops the rows
    after s, so that each step occurs once. The column ``time`` is the fitting time in seconds up to
    the row, from ``clock``.
    """

    name, version = "csv", ""

    def __init__(self, path: Path, clock: Callable[[], float], every: float = 2.0):
        super().__init__()
        self.path, self.clock, self.every = path, clock, every
        self._columns: list[str] = []  # columns of the file
        self.rows: dict[int, Entries] = {}  # the rows that are held, by step
        # Step of the last closed row, -1 if there is none, and the byte at which it ends.
        self._closed, self._end = -1, 0
        self._written = time.monotonic()

    def truncate_after(self, step: int) -> None:
        """Drop damaged rows and rows after ``step``; hold the last of the other rows."""
        kept = deque(self._read_rows_until(step), OPEN_ROWS + 1)
        self._columns, self._end, self._closed = [], 0, -1
        if len(kept) > OPEN_ROWS:
            self._closed, _ = kept.popleft()
        self.rows = dict(kept)

    def _read_rows_until(self, until: int) -> Iterator[tuple[int, Entries]]:
        """Yield the file's undamaged rows up to a step, one at a time."""
        table, last = read_rows(self.path), -1
        header = next(table, [])
        for cells in table:
            row = _parse_row(header, cells)
            if row is not None and last < row[0] <= until:  # Each step stands once, in order.
                last = row[0]
                yield row

    def all_rows(self) -> Iterator[tuple[int, Entries]]:
        """Yield all rows in order: closed rows from the file, then the held ones."""
        held = dict(sorted(self.rows.items()))
        for step, row in self._read_rows_until(self._closed):
            for earlier in [other for other in held if other < step]:
                yield earlier, held.pop(earlier)
            yield step, row | held.pop(step, {})
        yield from held.items()

    @property
    def last_row(self) -> tuple[int, Entries]:
        """Return the last step that has a row, and a copy of the row; 0 and {} if there is none."""
        step = max(self.rows, default=0)
        return step, dict(self.rows.get(step, {}))

    def fit_seconds_entry(self, step: int) -> Entries:
        """Return {"time": seconds of fitting} of a step's row; {} if there is none."""
        row = self.rows.get(step, {})
        if "time" not in row:
            return {}
        return {"time": float(row["time"])}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is stored in its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(step or 0, {})
        row.setdefault("time", round(self.clock(), 3))
        row.update({k: v for k, v in metrics.items() if k != "epoch"})

    def save(self) -> None:
        """Write the table if the last write was more than ``every`` seconds ago.

        Lightning calls this after each logged row.
        """
        if time.monotonic() - self._written > self.every:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write all changes now; without rows or a file, do nothing."""
        if not self.rows and not self.path.exists():
            return
        if self._can_append():
            self._append()
        else:
            self._rewrite()
        self._written = time.monotonic()

    def _can_append(self) -> bool:
        """Return whether the file is still as written, and only held rows have changed."""
        if not self._columns or not self.path.exists() or self.path.stat().st_size < self._end:
            return False
        new = {name for row in self.rows.values() for name in row} - {*self._columns}
        return not new and min(self.rows, default=0) > self._closed

    def _append(self) -> None:
        """Rewrite the held rows, which follow the closed rows in the file."""
        rows = sorted(self.rows.items())
        closed, held = (
            _csv_lines(self._columns, rows[:-OPEN_ROWS]),
            _csv_lines(self._columns, rows[-OPEN_ROWS:]),
        )
        replace_file_end(self.path, self._end, closed + held)
        self._hold(rows, self._end + len(closed))

    def _rewrite(self) -> None:
        """Rewrite the whole table, one row at a time."""
        names = dict.fromkeys(name for _, row in self.all_rows() for name in row)
        columns = ["step", *names]
        last: deque[tuple[int, Entries]] = deque(maxlen=OPEN_ROWS + 1)
        with atomic(self.path) as file:
            file.write(_csv_lines(columns, [], header=True))
            for step, row in self.all_rows():
                file.write(_csv_lines(columns, [(step, row)]))
                last.append((step, row))
            held = _csv_lines(columns, [*last][-OPEN_ROWS:])
            end = file.tell() - len(held)
        self._columns = columns
        self._hold([*last], end)

    def _hold(self, rows: list[tuple[int, Entries]], end: int) -> None:
        """Hold the last of ``rows``; ``end`` is the byte of the file at which these begin."""
        self.rows, self._end = dict(rows[-OPEN_ROWS:]), end
        if len(rows) > OPEN_ROWS:
            self._closed = rows[-OPEN_ROWS - 1][0]

    def finalize(self, status: str) -> None:
        self.flush()


def _csv_lines(
    columns: list[str], rows: Iterable[tuple[int, Entries]], header: bool = False
) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({"step": step} | row for step, row in rows)
    return text.getvalue().encode()


def _parse_row(header: list[str], cells: list[str]) -> tuple[int, Entries] | None:
    """Return the step of a row and its values, as text; None if it is damaged."""
    row = dict(zip(header, cells, strict=False))
    step = row.pop("step", "")
    if len(cells) != len(header) or not step.isdecimal() or len(step) > MAX_STEP_DIGITS:
        return None
    figures = {name: cell for name, cell in row.items() if cell}
    try:
        for cell in figures.values():
            float(cell)
    except ValueError:
        return None
    return int(step), figures


def sweep_name_of(run: RunDirectory) -> str | None:
    """Return the name of a run's sweep; None for a run without one."""
    folder = run.path.parent
    return folder.name if (folder / "sweep.json").exists() else None


def grouping_settings(
    choices: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str] = ()
) -> Entries:
    """Return the settings to group and filter runs by: "objective": "v", "optimizer/lr": 0.01.

    They are group choices, the seed, the setting and keys that were overridden on the command line.
    Keys have "/" in place of ".", as W&B cannot filter by keys with dots.
    """
    settings = {group: choice for group, choice in choices.items() if group not in NO_CHOICE}
    settings |= {key: config.get(key) for key in ("seed", "setting")}
    settings = {key: value for key, value in settings.items() if value is not None}
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key, value in flatten_config(dict(config)):
        group, dot, _ = key.partition(".")
        if key in typed and dot and group not in NOT_PARAMETERS:
            settings[key.replace(".", "/")] = value
    return settings


def flat_parameters(run: RunDirectory) -> Entries:
    """Flatten a run's configuration ("optimizer.lr") and its choices ("objective")."""
    config, choices = run.config(), run.provenance.choices
    flat = {k: v for k, v in flatten_config(config) if k.split(".")[0] not in NOT_PARAMETERS}
    flat |= grouping_settings(choices, config)
    return {k: v if isinstance(v, int | float) else format_value(v) for k, v in flat.items()}


def flatten_metrics(record: Mapping[str, Any]) -> Entries:
    """Flatten ``summary.json``: "test/bpd", "test/bpd_stderr", "test/bpd_n", "measures/..."."""
    flat: Entries = {}
    for key, value in record.items():
        if key not in NOT_METRICS:
            flat |= _flatten(value, key, SPLITS.get(key, f"{key}/"))
    return flat


def flatten_numbers(summary: Result | None, logged: Collection[str] = ()) -> dict[str, float]:
    """Return a summary's numbers by flat name, except those in ``logged``; {} without a summary."""
    if summary is None:
        return {}
    flat = flatten_metrics(summary.record)
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and k not in logged}


def _flatten(value: Any, name: str, prefix: str) -> Entries:
    """Return the numbers in a value by flat names.

    {"mean", "stderr", "n"} becomes ``name``, ``name_stderr`` and ``name_n``; another dict's entries
    are named with ``prefix``. Lists and None are dropped.
    """
    if isinstance(value, dict) and {"mean", "n"} <= value.keys():
        others = {f"{name}_{k}": v for k, v in value.items() if k != "mean" and v is not None}
        return {name: value["mean"]} | others
    if isinstance(value, dict):
        flat: Entries = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}{key}", f"{prefix}{key}/")
        return flat
    if value is None or isinstance(value, list):
        return {}
    return {name: value}


def curve_tables(record: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return the curves of a summary as tables: {"panels/noise_levels": (columns, rows), ...}."""
    return {
        f"panels/{key}": ([*value], [list(row) for row in zip(*value.values(), strict=True)])
        for key, value in record.items()
        if _is_curve(value)
    }


def _is_curve(value: Any) -> bool:
    """Return whether a value is a dictionary of columns (lists), and nothing else."""
    return isinstance(value, dict) and {type(column) for column in value.values()} == {list}
