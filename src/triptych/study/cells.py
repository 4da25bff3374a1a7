"""The parts of a report: a setting (Cell), a measure (MeasureTable), two settings (PairTest), all of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from triptych.config.metric import LOWER, SAMPLE_METRICS, Metric
from triptych.run.items import read_items
from triptych.run.parsing import UNITS, Estimate
from triptych.run.read import Run
from triptych.study.axes import Axis, value
from triptych.study.formatting import with_interval
from triptych.study.statistics import ALPHA, Paired, far, spread

METRIC = "metric/"  # before the name of a metric of the user's own, among the parts of a bound
BOUND = ""
Key = tuple[str, int, str, str]  # measure (BOUND: the test bound), place among its values, two cells' labels
Figures = dict[str, dict[int | None, tuple[float, ...]]]  # of a cell's label and seed, at each value of a key


@dataclass(frozen=True)
class Rule:
    """How a report decides. `equal_within`: the margin below which two settings are called the same, or None.

    `looks`: how many looks are planned; `seen`: which seeds each look so far had. `interim`: the sweep is not
    at its end, and stopping when a table looks good is a look as well: nothing is claimed.
    """

    equal_within: float | None = None
    looks: int = 1
    seen: tuple[frozenset[int], ...] = ()
    interim: bool = False


@dataclass(frozen=True)
class PairTest:
    """The second cell minus the first: the pair, its corrected p, and the corrected p of "not the same"."""

    pair: Paired
    p: float
    same: float = math.nan
    level: float = ALPHA  # what the uncorrected p has to reach if no other claim holds
    step_level: float = ALPHA  # what it had to reach, at any look, as others hold
    interim: bool = False

    @property
    def holds(self) -> bool:
        """True if the corrected p is at most .05 and no more runs are to come: "clear of"."""
        return self.p <= ALPHA and not self.interim

    @property
    def equal(self) -> bool:
        """True if the corrected p of "they differ by the margin or more" is at most .05."""
        return self.same <= ALPHA and not self.interim

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the difference, at the level of Holm's test: without zero where corrected p is at most .05.

        Where an earlier look decided it may include zero.
        """
        # a p that was cut off at 1 no longer tells what it was multiplied by
        level = self.level if self.p >= 1 else self.step_level
        return self.pair.interval(min(level, ALPHA * self.pair.p / self.p) if self.p > 0 else level)

    @property
    def text(self) -> str:
        """ "+0.120 [0.100, 0.140]", the interval as corrected as p."""
        if self.pair.n == 0:
            return "no common seed"
        return with_interval(self.pair.mean, *self.interval, sign=True)


@dataclass(frozen=True)
class Cell:
    """One combination of settings: its usable runs by seed (finished, finite bound) and the others.

    `copies`: {seed: the seed whose result it repeats}, of runs among the others.
    """

    label: str
    measure: str
    runs: dict[int | None, Run]
    others: tuple[Run, ...] = ()
    copies: Mapping[int | None, int | None] = field(default_factory=dict)

    @property
    def diverged(self) -> int:
        """Number of seeds that diverged and never finished, which no mean of the others shows."""
        return len({run.seed for run in self.others if run.status == "diverged"} - self.runs.keys())

    @property
    def seeds(self) -> set[int | None]:
        """Those of all its runs."""
        return {*self.runs, *(run.seed for run in self.others)}

    def values(self, part: str = "") -> dict[int | None, float]:
        """Return each seed's test figure; `part`: "" the bound, "prior", ..., "metric/NAME" a user's own."""
        own = part in ("entropy", "gap") or part.startswith(METRIC)
        key = part.removeprefix(METRIC) if own else f"{self.measure}_{part}" if part else self.measure
        estimates = {seed: run.test.get(key) for seed, run in self.runs.items()}
        return {seed: e.mean for seed, e in estimates.items() if e is not None and math.isfinite(e.mean)}

    def spread(self, part: str = "") -> Estimate:
        """Return the mean over seeds with its standard error."""
        return spread(list(self.values(part).values()))

    @cached_property
    def bound(self) -> Estimate:
        return self.spread()


@dataclass(frozen=True)
class MeasureTable:
    """One measure, of samples or the bound: for each cell its seeds' values, (seeds, values of the key).

    ``floor``: of true data, (median, lowest, highest). ``noise``: of pure noise.
    """

    metric: Metric
    key: str
    values: tuple[float, ...]
    cells: Figures
    floor: tuple[float, float, float] | None = None
    noise: float = math.nan

    @cached_property
    def spreads(self) -> dict[str, list[Estimate]]:
        """Each cell's figures over seeds, one for each value of the key."""
        of = self.cells.items()
        return {label: [*map(spread, zip(*seeds.values(), strict=True))] for label, seeds in of}

    @property
    def sign(self) -> int:
        """1 where lower is better, else -1."""
        return 1 if self.metric.better == LOWER else -1

    @cached_property
    def far(self) -> set[str]:
        """The cells that a linear axis leaves out, so that they squeeze no others."""
        values = {label: [v for row in seeds.values() for v in row] for label, seeds in self.cells.items()}
        return far(values, self.sign)

    def order(self, at: int) -> list[str]:
        """Return the cells by their means at a value, best first; those without one, of a seed's, last."""
        means = {label: self.sign * spreads[at].mean for label, spreads in self.spreads.items()}
        return sorted(means, key=lambda label: (math.isnan(means[label]), means[label], label))


def bound_by_item(runs: Iterable[Run], minus: Iterable[Run] = ()) -> dict[int | None, np.ndarray] | None:
    """Return the bound of each test item by seed, less that of the runs ``minus``, (n,) each.

    None unless every run recorded its items, the same ones in all.
    """
    by_seed: dict[int | None, np.ndarray] = {}
    index = None
    for sign, run in (*((1, run) for run in runs), *((-1, run) for run in minus)):
        items = read_items(run.dir, run.bound)
        if items is None or (index is not None and not np.array_equal(index, items.index)):
            return None
        index = items.index
        by_seed[run.seed] = by_seed.get(run.seed, 0) + sign * items.total
    return by_seed


@dataclass(frozen=True)
class Comparison:
    """Cells on the same data in the same unit, best (lowest mean test bound) first.

    `claims` are all pairs by the bound and by the measures of samples, corrected as one family of `tests`
    over the whole report. `pending` are cells without a usable run.
    """

    data: str
    measure: str
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    pending: tuple[Cell, ...]
    notes: tuple[str, ...]
    title: str = ""  # of a stage of a sweep that tuned first
    claims: dict[Key, PairTest] = field(default_factory=dict)
    rule: Rule = Rule()
    tests: int = 0

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs.values()]

    @property
    def unit(self) -> str:
        """ "bits/dim" or "nats/dim"."""
        return UNITS[self.measure]

    @property
    def tested(self) -> str:
        """ "297 test items", or "297 or 300 test items", of a bound that decides; else ""."""
        sizes = [] if self.deciding else sorted({run.test[self.measure].n for run in self.runs})
        return " or ".join(map(str, sizes)) + f" test item{'s' * (sizes != [1])}" if sizes else ""

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
        cells: Figures = {c.label: {seed: (x,) for seed, x in c.values().items()} for c in self.cells}
        return MeasureTable(Metric(BOUND, "test bound", LOWER, unit=self.unit), "", (math.nan,), cells)

    @cached_property
    def measures(self) -> dict[str, MeasureTable]:
        """Measures of samples by name: built-in ones, then the user's."""
        measured = [run.measured for run in self.runs if run.measured]
        own = {name: metric for one in measured for name, metric in one.metrics.items()}
        every = SAMPLE_METRICS | {name: metric for name, metric in own.items() if name not in SAMPLE_METRICS}
        return {name: table for name, metric in every.items() if (table := self._measure(metric))}

    def _measure(self, metric: Metric) -> MeasureTable | None:
        """Return the figures of runs that share the first one's key and values."""
        first, name, cells = None, metric.name, Figures()
        for cell in self.cells:
            for seed, run in cell.runs.items():
                if (m := run.measured) and not all(map(math.isnan, m.at(name))):
                    first = first or m
                    if (m.key, m.values) == (first.key, first.values):
                        cells.setdefault(cell.label, {})[seed] = m.at(name)
        if first is None:
            return None
        floor, noise = first.floor.get(name), first.noise.get(name, math.nan)
        return MeasureTable(metric, first.key, first.values, cells, floor, noise)

    @cached_property
    def deciding(self) -> MeasureTable | None:
        """The measure that decides where cells share one model; None: the bound decides."""
        ranked = (table for table in self.measures.values() if table.metric.better and len(table.cells) > 1)
        return next(ranked, None) if self.of_drawing else None

    @property
    def is_unmeasured(self) -> bool:
        """Whether the cells share one model, and no measure says how samples drawn from it differ."""
        return self.of_drawing and len(self.cells) > 1 and self.deciding is None

    @property
    def question(self) -> MeasureTable:
        """What decides: `deciding`, or the bound."""
        return self.deciding or self.bounds

    @property
    def one_training(self) -> bool:
        """Whether the seeds of each cell share one trained model: their spread is then of drawing alone."""
        models = [{value(run, "trained") for run in cell.runs.values()} for cell in self.cells]
        several = any(len(cell.runs) > 1 for cell in self.cells)
        return several and all(len(one) == 1 and not one & {"null", "none", "default"} for one in models)

    def claim(self, i: int, j: int) -> PairTest:
        """Return the test of cell j minus cell i by the bound, for any two different cells."""
        return self.sampled(BOUND, 0, self.cells[i].label, self.cells[j].label)

    def sampled(self, name: str, at: int, a: str, b: str) -> PairTest:
        """Return the test of cell b minus cell a by a measure, at its key's value number `at`, or bound."""
        if (name, at, a, b) in self.claims:
            return self.claims[name, at, a, b]
        claim = self.claims[name, at, b, a]
        return replace(claim, pair=replace(claim.pair, mean=-claim.pair.mean))
