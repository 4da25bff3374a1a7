"""Cost of each setting: time, memory, parameters, denoiser calls per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from triptych.run.read import Run
from triptych.study.cells import Cell, Comparison
from triptych.study.formatting import duration
from triptych.study.statistics import spread
from triptych.study.tables import TableRow, entry

HOW = (
    "Means over a setting's runs with the standard error over them. Seconds a step are those of the whole "
    "fit, validation and checkpoints too, over its steps; images a second the median of what was logged "
    "while training. Memory is the most that was in use: on the GPU where there is one, else of the process "
    "with its libraries. Runs side by side share a machine, so equal times are not to be expected even of "
    "equal settings."
)


def per_step(run: Run) -> float:
    """Return the seconds per training step."""
    return run.seconds.get("fit", math.nan) / run.steps if run.steps else math.nan


def speed(run: Run) -> float:
    """Return the median of the logged images per second."""
    values = run.history("train/images_per_second")[1]
    return median(values) if values else math.nan


def _of(record: str, key: str) -> Callable[[Run], float]:
    """Return the figure of one of a run's records, NaN where it has none."""
    return lambda run: getattr(run, record).get(key, math.nan)


def _size(run: Run) -> float:
    return math.nan if run.parameters is None else float(run.parameters)


def _whole(x: float) -> str:
    return f"{x:,.0f}"


def _bytes(x: float) -> str:
    return f"{x / 2**20:,.0f} MiB" if x < 2**30 else f"{x / 2**30:,.1f} GiB"


# key, heading, figure of a run, how it is written (None: mean ± standard error)
COLUMNS: tuple[tuple[str, str, Callable[[Run], float], Callable[[float], str] | None], ...] = (
    ("step", "seconds a step", per_step, None),
    ("speed", "images a second", speed, _whole),
    ("fit", "fit", _of("seconds", "fit"), duration),
    ("test", "test", _of("seconds", "test"), duration),
    ("memory", "peak memory", _of("cost", "memory"), _bytes),
    ("parameters", "parameters", _size, _whole),
    ("evaluations", "calls of the denoiser a sample", _of("cost", "evaluations"), _whole),
)


def cost_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """Return key and heading of each recorded cost."""
    return [(key, head) for key, head, of, _ in COLUMNS
            if any(any(_known(of, cell)) for cell in comparison.cells)]  # fmt: skip


def cost_rows(comparison: Comparison) -> list[TableRow]:
    """Return one row per setting, in the order of the table."""
    return [_line(cell) for cell in comparison.cells]


def _line(cell: Cell) -> TableRow:
    entries = {}
    for key, _, of, written in COLUMNS:
        if not (values := _known(of, cell)):
            continue
        average = spread(values)
        if not average.stderr > 1e-9 * abs(average.mean):  # one run, or figures equal but for rounding
            average = replace(average, stderr=math.nan)
        entries[key] = entry(average, None if written is None else written(average.mean))
    return TableRow(cell.label, entries)


def _known(of: Callable[[Run], float], cell: Cell) -> list[float]:
    return [value for run in cell.runs.values() if math.isfinite(value := of(run))]
