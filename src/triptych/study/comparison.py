"""A comparison: cells on the same data, their deciding measure, and the tests of all pairs."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np

from triptych.config.metric import LOWER, SAMPLE_METRICS, Metric
from triptych.run.parsing import UNITS, SampleMeasures
from triptych.run.read import Run
from triptych.study.axes import Axis, axis_value
from triptych.study.cells import (
    BOUND,
    Cell,
    DecisionRule,
    Figures,
    Key,
    MeasureTable,
    PairTest,
)
from triptych.study.statistics import spread


@dataclass(frozen=True)
class Comparison:
    """Cells on the same data in the same unit, best first by the bound or the deciding measure.

    `claims`: the tests of all pairs by the bound and by the measures of samples, corrected as one
    family. `tests`: the size of that family, over the whole report. `pending`: cells without a
    usable run.
    """

    data: str
    measure: str
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    pending: tuple[Cell, ...]
    notes: tuple[str, ...]
    title: str = ""
    claims: dict[Key, PairTest] = field(default_factory=dict)
    rule: DecisionRule = DecisionRule()
    tests: int = 0

    @property
    def runs(self) -> list[Run]:
        """The usable runs of all cells."""
        return [*chain.from_iterable(cell.runs.values() for cell in self.cells)]

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """Cells in the order of the table, those without a usable run last."""
        return (*self.cells, *self.pending)

    @property
    def one_seed(self) -> bool:
        """Whether no setting has a second seed."""
        return all(len(cell.runs) <= 1 for cell in self.cells)

    @property
    def unit(self) -> str:
        """The unit of the bound: "bits/dim" or "nats/dim"."""
        return UNITS[self.measure]

    @property
    def tested(self) -> str:
        """The numbers of test items and of their groups if the bound decides; else "".

        "297 test items, taken as independent", "297 or 300 test items in 40 groups".
        """
        if self.deciding or not self.runs:
            return ""
        bounds = [run.test[self.measure] for run in self.runs]
        sizes = sorted({bound.n for bound in bounds})
        items = f"{' or '.join(map(str, sizes))} test items"
        groups = bounds[0].groups
        if groups is None:
            return f"{items}, taken as independent"
        return f"{items} in {groups} groups"

    @property
    def heading(self) -> str:
        """Heading that distinguishes this comparison from others in a report."""
        if self.title:
            return self.title[0].upper() + self.title[1:]
        return f"On {self.data or 'unnamed data'} ({self.unit})"

    @property
    def subject(self) -> str:
        """The axes' names: "objective", "objective / schedule", or "configuration"."""
        return " / ".join(axis.key for axis in self.axes) or "configuration"

    @property
    def of_drawing(self) -> bool:
        """Whether the cells share one model and differ only in how samples are drawn from it."""
        return bool(self.axes) and all(axis.of_drawing for axis in self.axes)

    @cached_property
    def bounds(self) -> MeasureTable:
        """The table of the test bound, a measure with one value per seed."""
        figures = Figures()
        for cell in self.cells:
            figures[cell.label] = {seed: (bound,) for seed, bound in cell.values().items()}
        metric = Metric(BOUND, "test bound", LOWER, unit=self.unit)
        return MeasureTable(metric, "", (math.nan,), figures)

    @cached_property
    def measures(self) -> dict[str, MeasureTable]:
        """The tables of all measures of samples by name: built-in ones, then the user's."""
        own: dict[str, Metric] = {}
        for run in self.runs:
            if run.measured:
                own |= run.measured.metrics
        # Built-in metrics come first, and user-supplied ones cannot replace them.
        metrics = {**SAMPLE_METRICS, **own, **SAMPLE_METRICS}
        tables = {name: self._measure_table(metric) for name, metric in metrics.items()}
        return {name: table for name, table in tables.items() if table is not None}

    def _measure_table(self, metric: Metric) -> MeasureTable | None:
        """Return a metric's table; None if no run measured it.

        It has the runs with the same ``measures.over`` and values as the first run that has any.
        """
        name, figures, first = metric.name, Figures(), None
        references: dict[int | None, SampleMeasures] = {}  # a seed's runs share their true data
        for cell in self.cells:
            for seed, run in cell.runs.items():
                measured = run.measured
                if measured is None or all(map(math.isnan, measured.at(name))):
                    continue
                first = first or measured
                if (measured.key, measured.values) == (first.key, first.values):
                    figures.setdefault(cell.label, {})[seed] = measured.at(name)
                    references.setdefault(seed, measured)
        if first is None:
            return None
        floors = [m.floor[name] for m in references.values() if name in m.floor]
        floor = None
        if floors:
            median, low, high = np.mean(floors, axis=0).tolist()
            floor = (median, low, high)
        noise = spread([m.noise[name] for m in references.values() if name in m.noise]).mean
        return MeasureTable(metric, first.key, first.values, figures, floor, noise)

    @cached_property
    def deciding(self) -> MeasureTable | None:
        """The measure of samples that decides, if the cells share one model; else None."""
        if not self.of_drawing:
            return None
        for table in self.measures.values():
            if table.metric.better and len(table.cells) > 1:
                return table
        return None

    @property
    def is_unmeasured(self) -> bool:
        """Whether the cells share one model, and no measure compares the samples drawn from it."""
        return self.of_drawing and len(self.cells) > 1 and self.deciding is None

    @property
    def question(self) -> MeasureTable:
        """The measure that decides: `deciding`, or the bound if that is None."""
        return self.deciding or self.bounds

    @property
    def ranked(self) -> tuple[Cell, ...]:
        """The cells with a figure of the deciding measure, which come first in `cells`."""
        return self.cells[: len(self.question.cells)]

    def best_first(self) -> "Comparison":
        """Return the comparison with its cells sorted by the measure that decides, best first."""
        places = {label: place for place, label in enumerate(self.question.ranked_labels(-1))}
        cells = sorted(self.cells, key=lambda cell: places.get(cell.label, len(places)))
        return replace(self, cells=tuple(cells))

    @property
    def one_training(self) -> bool:
        """Whether the seeds of each cell share one trained model and differ only in sampling."""
        if self.one_seed:
            return False
        models = [{axis_value(run, "trained") for run in cell.runs.values()} for cell in self.cells]
        return all(len(names) == 1 and not names & {"null", "none", "default"} for names in models)

    def pair_test(self, i: int, j: int) -> PairTest:
        """Return the test of cell j minus cell i by the deciding measure, for two of `ranked`."""
        table = self.question
        last = len(table.values) - 1
        return self.metric_test(table.metric.name, last, self.cells[i].label, self.cells[j].label)

    def are_at_floor(self, i: int, j: int) -> bool:
        """Return whether samples of cells i and j are both as close to the data as true data."""
        cells = (self.cells[i], self.cells[j])
        return all(self.question.is_at_floor(cell.label, -1) for cell in cells)

    def metric_test(self, name: str, value_index: int, a: str, b: str) -> PairTest:
        """Return the test of cell b minus cell a by a measure at its value number `value_index`."""
        key = (name, value_index, a, b)
        if key in self.claims:
            return self.claims[key]
        claim = self.claims[name, value_index, b, a]
        return replace(claim, pair=replace(claim.pair, mean=-claim.pair.mean))
