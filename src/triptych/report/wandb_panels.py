"""The panels of a comparison in W&B: what runs tell under ``training.wandb_content``'s keys, by setting.

A panel is there where some run has what it shows. Bars and lines are means over the seeds of a setting with
their standard error, as W&B takes them; what is over a noise level is one line a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.report import measures
from triptych.report.axes import SWEEP, Axis
from triptych.report.compare import METRIC, Comparison
from triptych.report.story import columns
from triptych.runs.directory import RunDirectory
from triptych.runs.read import PARTS, Run
from triptych.training.wandb_content import BESIDE, LINE, RESOLVED, STEP, chart, figures, panels

SECONDS = "time"  # of fitting
TRAINING = {  # curves over the training step, where a run has them
    "train/loss": "training loss",
    "train/grad_norm": "norm of the gradient, before it is clipped",
    "train/clipped": "share of steps that were clipped",
    "train/images_per_second": "images a second",
}


@dataclass(frozen=True)
class Told:
    """Which keys W&B has of some runs: columns of their histories, figures of their summaries, tables."""

    history: frozenset[str]
    summary: frozenset[str]
    tables: dict[str, list[str]]

    @classmethod
    def by(cls, runs: Iterable[Run]) -> Told:
        history: set[str] = set()
        summary: set[str] = set()
        tables: dict[str, list[str]] = {}
        for run in runs:
            history |= run.columns()
            said = RunDirectory(run.dir).summary() or {}
            summary |= figures(said).keys()
            tables |= {f"{key}_table": names for key, (names, _) in panels(said).items()}
        return cls(frozenset(history), frozenset(summary), tables)


def panels_of(wr: Any, comparison: Comparison) -> list[tuple[str, list[Any]]]:
    """Panels by section: what has nothing to show is left out."""
    told = Told.by(runs_of(comparison))
    by = _by_setting(wr, comparison)
    sections = [
        ("Test", _test(wr, comparison, told, by)),
        ("Validation", _validation(wr, comparison, told, by)),
        ("Noise levels and measures", _tables(wr, told)),
        ("Training", [_line(wr, title, key, by) for key, title in TRAINING.items() if key in told.history]),
        ("Samples, drawn from the same noise", _samples(wr, comparison)),
    ]
    return [(name, found) for name, found in sections if found]


def _by_setting(wr: Any, comparison: Comparison) -> dict[str, Any]:
    """Mean and standard error over the seeds of a setting; of several axes, the run set's groups."""
    over_seeds = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    if len(comparison.axes) != 1:
        return over_seeds | {"aggregate": True}
    [axis] = comparison.axes
    key = wr.Metric("Group") if axis.key == SWEEP else wr.Config(config_key(axis, runs_of(comparison)))
    return over_seeds | {"groupby": key}


def _test(wr: Any, comparison: Comparison, told: Told, by: dict[str, Any]) -> list[Any]:
    bound, unit = f"test/{comparison.measure}", comparison.unit
    asked = {bound: f"test bound, {unit}"}
    asked |= {f"{bound}_{part}": f"{part}, {unit}" for part in PARTS}
    asked["test/gap"] = f"gap to truth, {unit}"
    shown = {key for key, _ in columns(comparison) if key.startswith(METRIC)}
    asked |= {f"test/{key.removeprefix(METRIC)}": key.removeprefix(METRIC) for key in sorted(shown)}
    ranked = measures.known(comparison.cells).values()
    asked |= {f"measures/{m.name}": f"{m.label} ({m.better})" for m in ranked if m.better}
    limit = {"max_runs_to_show": 500, "max_bars_to_show": 100}
    return [
        wr.BarPlot(title=title, metrics=[key], **by, **limit)
        for key, title in asked.items()
        if key in told.summary
    ]


def _validation(wr: Any, comparison: Comparison, told: Told, by: dict[str, Any]) -> list[Any]:
    if "val/bound" not in told.history:
        return []
    title = f"validation bound, {comparison.unit}"
    return [
        _line(wr, f"{title}, by training steps", "val/bound", by),
        _line(wr, f"{title}, by seconds of training", "val/bound", by, SECONDS),
    ]


def _line(wr: Any, title: str, key: str, by: dict[str, Any], x: str = STEP) -> Any:
    head = "training step" if x == STEP else "seconds"
    return wr.LinePlot(title=title, x=x, y=[key], title_x=head, max_runs_to_show=500, **by)


def _tables(wr: Any, told: Told) -> list[Any]:
    found = []
    for key, names in told.tables.items():
        x, y = chart(names)
        title = key.removeprefix("panels/").removesuffix("_table").replace("_", " ")
        one = wr.CustomChart(
            query={"summaryTable": {"tableKey": key}},
            chart_name=LINE,
            chart_fields={"x": x, "y": y},
            chart_strings={"title": title},
        )
        found.append(one)
    return found


def _samples(wr: Any, comparison: Comparison) -> list[Any]:
    runs = runs_of(comparison)
    asked = {"samples/final": "at the end"} if any(run.samples for run in runs) else {}
    if any((run.dir / "samples").glob("step_*.png") for run in runs):
        asked["samples"] = "while training"
    return [wr.MediaBrowser(title=title, media_keys=[key], num_columns=5) for key, title in asked.items()]


def laid_out(wr: Any, found: list[Any]) -> list[Any]:
    """Two panels a row of W&B's grid, which is 24 wide; samples take a row."""
    for i, panel in enumerate(found):
        wide = isinstance(panel, wr.MediaBrowser)
        x, w = (0, 24) if wide else (12 * (i % 2), 12)
        panel.layout = wr.Layout(x=x, y=8 * (i if wide else i // 2), w=w, h=8)
    return found


# what the runs are grouped by ---------------------------------------------------------------------------


def config_key(axis: Axis, runs: Sequence[Run]) -> str:
    """The key of W&B's configuration that an axis is: a choice or a flat key by its name, else resolved."""
    flat = axis.key in BESIDE or any(axis.key in run.choices for run in runs)
    return axis.key if flat else f"{RESOLVED}.{axis.key}"


def grouping(comparison: Comparison) -> list[str]:
    """As a run set of a report spells it."""
    runs = runs_of(comparison)
    return ["group" if axis.key == SWEEP else f"config.{config_key(axis, runs)}" for axis in comparison.axes]


def runs_of(comparison: Comparison) -> list[Run]:
    return [run for cell in comparison.cells for run in cell.runs.values()]


def with_value(key: str) -> str:
    """A key of the configuration as W&B's columns have it: "seed.value", "resolved.value.optimizer.lr"."""
    first, dot, rest = key.partition(".")
    return f"{first}.value{dot}{rest}"
