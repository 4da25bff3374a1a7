"""Write ``metrics.csv``, and convert configurations and results for the other loggers.

The table has one row per step and one column per metric. A kill and resume of the run does not
change it.
"""

import csv
import io
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.identity import flatten_config
from triptych.config.keys import override_keys
from triptych.files import read_rows
from triptych.records import Entries
from triptych.run.directory import RunDirectory, write_atomic
from triptych.run.parsing import format_value
from triptych.run.result import Result

MAX_STEP_DIGITS = 18  # maximum number of digits of a step
SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # prefixes in metrics.csv
# Entries of summary.json that are not logged as metrics.
NOT_METRICS = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics", "versions")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # config groups that do not distinguish runs
NOT_PARAMETERS = ("logger", "paths")  # config groups that are not logged as hyperparameters
RESOLVED = "resolved"  # W&B gets the resolved configuration under this key


class MetricsCsv(Logger):
    """A Lightning logger that writes a CSV table.

    Values of the same step are merged into one row. The table is held in memory and written as a
    whole, at most every ``every`` seconds and for at most a hundredth of the time. A run that
    resumes at step s drops the rows after s, so that each step occurs once. The column ``time`` is
    the fitting time in seconds up to the row, from ``clock``.
    """

    name, version = "csv", ""

    def __init__(self, path: Path, clock: Callable[[], float], every: float = 2.0):
        super().__init__()
        self.path, self.clock, self.every = path, clock, every
        self.rows: dict[int, Entries] = {}  # by step
        self._due = time.monotonic() + every  # time of the next write

    def truncate_after(self, until: int) -> None:
        """Load the file's rows up to step ``until``; drop later rows and damaged ones."""
        table = read_rows(self.path)
        header = next(table, [])
        for cells in table:
            row = _parse_row(header, cells)
            if row is not None and row[0] <= until:
                self.rows[row[0]] = row[1]

    @property
    def last_row(self) -> tuple[int, Entries]:
        """Return the last step that has a row, and a copy of the row; 0 and {} if there is none."""
        step = max(self.rows, default=0)
        return step, dict(self.rows.get(step, {}))

    def fit_seconds_entry(self, step: int) -> Entries:
        """Return {"time": seconds of fitting} of the row for ``step``; {} without such a row."""
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
        """Write the table if it is due; Lightning calls this after each logged row."""
        if time.monotonic() > self._due:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write the table now; without rows, do nothing."""
        if not self.rows:
            return
        began = time.monotonic()
        rows = sorted(self.rows.items())
        names = dict.fromkeys(name for _, row in rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step} | row for step, row in rows)
        write_atomic(self.path, text.getvalue())
        now = time.monotonic()
        self._due = now + max(self.every, 100 * (now - began))

    def finalize(self, status: str) -> None:
        self.flush()


def _parse_row(header: list[str], cells: list[str]) -> tuple[int, Entries] | None:
    """Return a row's step and its values as text; None if the row is damaged."""
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


def recorded_sweep_name(run: RunDirectory) -> str | None:
    """Return the name of the sweep whose directory contains a run; None without a sweep."""
    folder = run.path.parent
    return folder.name if (folder / "sweep.json").exists() else None


def grouping_settings(
    choices: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str] = ()
) -> Entries:
    """Return the settings by which loggers group and filter runs, such as {"optimizer/lr": 0.01}.

    They are group choices, the seed, the setting and keys that were overridden on the command line.
    Keys have "/" in place of ".", as W&B cannot filter by keys with dots.
    """
    settings = {group: choice for group, choice in choices.items() if group not in NO_CHOICE}
    settings |= {key: config.get(key) for key in ("seed", "setting")}
    settings = {key: value for key, value in settings.items() if value is not None}
    typed = override_keys(overrides)
    for key, value in flatten_config(dict(config)):
        group, dot, _ = key.partition(".")
        if key in typed and dot and group not in NOT_PARAMETERS:
            settings[key.replace(".", "/")] = value
    return settings


def flat_parameters(run: RunDirectory) -> Entries:
    """Return a run's configuration and group choices by flat name, as in {"optimizer.lr": 0.01}."""
    config, choices = run.config(), run.provenance.choices
    flat = {k: v for k, v in flatten_config(config) if k.split(".")[0] not in NOT_PARAMETERS}
    flat |= grouping_settings(choices, config)
    return {k: v if isinstance(v, int | float) else format_value(v) for k, v in flat.items()}


def flatten_metrics(record: Mapping[str, Any]) -> Entries:
    """Return the entries of ``summary.json`` by flat name: "test/bpd", "test/bpd_stderr", ...."""
    flat: Entries = {}
    for key, value in record.items():
        if key not in NOT_METRICS:
            flat |= _flatten(value, key, SPLITS.get(key, f"{key}/"))
    return flat


def flatten_numbers(summary: Result | None, logged: Collection[str] = ()) -> dict[str, float]:
    """Return a result's numbers by flat name, except for names in ``logged``; {} if None."""
    if summary is None:
        return {}
    flat = flatten_metrics(summary.record)
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and k not in logged}


def _flatten(value: Any, name: str, prefix: str) -> Entries:
    """Return the numbers within one entry of ``summary.json`` by flat name.

    {"mean", "stderr", "n"} becomes ``name``, ``name_stderr`` and ``name_n``; entries of another
    dict have names that begin with ``prefix``. Lists and None are dropped.
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
    """Return the curves of a result as tables: {"panels/noise_levels": (columns, rows), ...}."""
    return {
        f"panels/{key}": ([*value], [list(row) for row in zip(*value.values(), strict=True)])
        for key, value in record.items()
        if _is_curve(value)
    }


def _is_curve(value: Any) -> bool:
    """Return whether a value is a dictionary of lists, the columns of a curve."""
    return isinstance(value, dict) and {type(column) for column in value.values()} == {list}
