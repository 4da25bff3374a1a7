"""The parts of a comparison: a setting (Cell), a measure (MeasureTable), a test (PairTest)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np

from triptych.config.metric import LOWER, Metric
from triptych.run.items import read_items
from triptych.run.parsing import Estimate
from triptych.run.read import Run
from triptych.study.formatting import with_interval
from triptych.study.statistics import ALPHA, ItemDifferences, Paired, outlying_labels, spread

METRIC = "metric/"  # prefix of user-supplied metrics among the parts of a bound
BOUND = ""  # name of the test bound among the metrics
# Metric, index of the value of ``measures.over``, and the labels of two cells.
Key = tuple[str, int, str, str]
# {cell's label: {seed: figures, one for each value of the measure's key}}
Figures = dict[str, dict[int | None, tuple[float, ...]]]
Outcome = Literal["separated", "same", "identical", "open"]
LATER_SHARES = 10  # looks after a full report share the 5% divided by this


@dataclass(frozen=True)
class DecisionRule:
    """The rule by which a report decides: margin, planned looks, and whether runs are to come.

    A look is a test of all pairs on the seeds that have finished by then.

    `equal_within`: the margin below which two settings are called the same, or None.

    `looks`: the number of planned looks; `seen`: the seeds of each look so far. `interim`: the
    sweep has not ended, so nothing is claimed, as stopping at a good table would be another look.
    `reported`: a report could spend the whole 5% before the looks were planned.
    """

    equal_within: float | None = None
    looks: int = 1
    seen: tuple[frozenset[int], ...] = ()
    interim: bool = False
    reported: bool = False

    def p_factor(self, look_index: int) -> int:
        """Return the factor by which a look's p is multiplied, as looks share the 5% equally.

        After a report that could spend 5%, the first look repeats that report, and later looks
        share another 0.5%: all together err in at most 5.5%.
        """
        if not self.reported:
            return self.looks
        if look_index == 0 and self.seen:
            return 1
        return LATER_SHARES * max(self.looks - 1, 1)

    @property
    def current_p_factor(self) -> int:
        """The factor of p at the newest look; before any look, at the next one."""
        return self.p_factor(max(len(self.seen), 1) - 1)


@dataclass(frozen=True)
class PairTest:
    """The test of two cells: the difference, second minus first, and its corrected p-values.

    `equivalence_p`: p of "they differ by the margin or more". `level`: the pair's share of the 5%,
    so that all intervals of a report hold together in 95% of reports (Bonferroni).
    """

    pair: Paired
    p: float
    equivalence_p: float = math.nan
    level: float = ALPHA
    interim: bool = False

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is at most .05 and all runs have ended: "clear of"."""
        return self.p <= ALPHA and not self.interim

    @property
    def equal(self) -> bool:
        """Whether the corrected p of "they differ by the margin or more" is at most .05.

        Always false while runs are to come.
        """
        return self.equivalence_p <= ALPHA and not self.interim

    @property
    def outcome(self) -> Outcome:
        """The outcome of the test; "identical" if the cells differ in no seed."""
        if self.pair.is_identical and not self.interim:
            return "identical"
        if self.is_significant:
            return "separated"
        return "same" if self.equal else "open"

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Interval of the difference; the test is significant where it excludes zero.

        It may include zero where Holm's later steps, or an earlier look, find a difference. Between
        two looks it may exclude zero before the test, as it has seeds that no look has had.
        """
        return self.pair.interval(self.level)

    def to_text(self, decimals: int = 0) -> str:
        """Format the difference with its interval: "+0.120 [0.100, 0.140]".

        `decimals`: the minimum, as for a column of a table.
        """
        if self.pair.n == 0:
            return "no common seed"
        return with_interval(self.pair.mean, *self.interval, sign=True, decimals=decimals)


def is_usable(run: Run) -> bool:
    """Return whether a run has finished with a finite bound, so that it can be compared."""
    return run.status == "finished" and math.isfinite(run.bound)


@dataclass(frozen=True)
class Cell:
    """One combination of settings: its usable runs by seed (finished, finite bound) and the others.

    `copies`: {seed: the seed whose result it repeats}, for runs in `others`. `superseded`: the
    number of usable runs that a newer run of the same seed replaces.
    """

    label: str
    measure: str
    runs: dict[int | None, Run]
    others: tuple[Run, ...] = ()
    copies: Mapping[int | None, int | None] = field(default_factory=dict)
    superseded: int = 0

    def seeds_ended_as(self, status: str) -> set[int | None]:
        """Return the seeds with a run of this status and without a usable run."""
        return {run.seed for run in self.others if run.status == status} - self.runs.keys()

    @property
    def seeds(self) -> set[int | None]:
        """Seeds of all its runs."""
        return {*self.runs, *(run.seed for run in self.others)}

    def values(self, part: str = "") -> dict[int | None, float]:
        """Return {seed: test figure}, finite ones only.

        `part`: "" for the bound, the name of one of its terms as "prior", or "metric/NAME".
        """
        key = self._figure_key(part)
        values = {seed: run.test[key].mean for seed, run in self.runs.items() if key in run.test}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def _figure_key(self, part: str) -> str:
        """Return the key under which runs record a part: "bpd_prior" for "prior"."""
        if not part:
            return self.measure
        if part in ("entropy", "gap") or part.startswith(METRIC):
            return part.removeprefix(METRIC)
        return f"{self.measure}_{part}"

    def spread(self, part: str = "") -> Estimate:
        """Return the mean of a part over seeds, with its standard error."""
        return spread(self.values(part).values())

    @property
    def parameters(self) -> int | None:
        """The number of parameters of its models, the largest if it differs; None if unknown."""
        sizes = [run.parameters for run in self.runs.values() if run.parameters is not None]
        return max(sizes, default=None)

    @cached_property
    def bound(self) -> Estimate:
        """The mean test bound over seeds, with its standard error."""
        return self.spread()


@dataclass(frozen=True)
class MeasureTable:
    """The figures of one measure, of samples or the bound, by cell and seed.

    ``key``, ``values``: the key that ``measures.over`` varies, and its values; a seed has a figure
    at each. ``floor``: the measure between two sets of true data, (median, lowest, highest).
    ``noise``: the measure of pure noise. Both are means over seeds.
    """

    metric: Metric
    key: str
    values: tuple[float, ...]
    cells: Figures
    floor: tuple[float, float, float] | None = None
    noise: float = math.nan

    @cached_property
    def spreads(self) -> dict[str, list[Estimate]]:
        """Each cell's mean over seeds with its standard error, at each value of the key."""
        columns = {label: zip(*seeds.values(), strict=True) for label, seeds in self.cells.items()}
        return {label: [*map(spread, values)] for label, values in columns.items()}

    @property
    def sign(self) -> int:
        """1 where lower is better, else -1."""
        return 1 if self.metric.better == LOWER else -1

    @cached_property
    def outlying_cells(self) -> set[str]:
        """Labels of cells so far from the others that a linear axis leaves them out."""
        values = {label: [*chain(*seeds.values())] for label, seeds in self.cells.items()}
        return outlying_labels(values, self.sign)

    def is_as_good_as_data(self, figure: float) -> bool:
        """Return whether a figure is no worse than the worst one between sets of true data."""
        return self.floor is not None and self.sign * figure <= max(
            x * self.sign for x in self.floor
        )

    def seed_values(self, label: str, value_index: int) -> dict[int | None, float]:
        """Return a cell's figure of each seed at the key's value number `value_index`."""
        return {seed: values[value_index] for seed, values in self.cells[label].items()}

    def is_at_floor(self, label: str, value_index: int) -> bool:
        """Return whether a cell's mean is no worse than the worst figure of true data."""
        return self.is_as_good_as_data(self.spreads[label][value_index].mean)

    def ranked_labels(self, value_index: int) -> list[str]:
        """Return labels sorted by the means at value number `value_index`: best first, NaN last."""
        means = {
            label: self.sign * spreads[value_index].mean for label, spreads in self.spreads.items()
        }
        return sorted(means, key=lambda label: (math.isnan(means[label]), means[label], label))


def bound_by_item(
    runs: Iterable[Run],
    minus: Iterable[Run] = (),
) -> ItemDifferences | None:
    """Return each test item's bound by seed, minus the bound of the runs ``minus``.

    None unless all runs recorded the same items. Items keep the groups that the data define.
    """
    by_seed: dict[int | None, np.ndarray] = {}
    index, group = None, None
    signed = [(1, run) for run in runs] + [(-1, run) for run in minus]
    for sign, run in signed:
        items = read_items(run.dir)
        if items is None:
            return None
        if index is not None and not np.array_equal(index, items.index):
            return None
        index, group = items.index, items.group
        by_seed[run.seed] = by_seed.get(run.seed, 0) + sign * items.total
    return ItemDifferences(by_seed, group)
