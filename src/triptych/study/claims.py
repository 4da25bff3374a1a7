"""Correct all claims of a report as one family, by Holm's method (docs/comparing.md).

The deciding measure (the bound, or a measure of samples) has half of the error rate to itself
(weighted Holm), so that many other measures do not weaken its tests. Each of `looks` planned looks
may spend an equal share of the 5% (alpha spending, Lan & DeMets 1983, with the union bound): what
enters Holm's test is the smallest p of the looks taken, each times `DecisionRule.p_factor`.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import DecisionRule, Key, MeasureTable, PairTest, bound_by_item
from triptych.study.comparison import Comparison
from triptych.study.statistics import ALPHA, Paired, holm, paired

MAX_SEEDS = 12  # the default of max_seeds: a report suggests no more
FIRST = 3  # number of seeds that a report suggests if a pair has fewer than two in common


@dataclass(frozen=True)
class Hypothesis:
    """The hypothesis that two cells of comparison `comparison_index` are equal by one measure.

    `pair`: their difference over all seeds; `looks`: (factor of p, difference) of each look.
    `primary`: whether the measure is the deciding one.
    """

    comparison_index: int
    key: Key
    pair: Paired
    looks: Sequence[tuple[int, Paired]]
    primary: bool


def correct_for_multiple_tests(
    comparisons: Sequence[Comparison], rule: DecisionRule
) -> list[Comparison]:
    """Return the comparisons of one report with the tests of all pairs, corrected together."""
    family: list[Hypothesis] = []
    for place, comparison in enumerate(comparisons):
        family += _hypotheses(place, comparison, rule)
    p_values = list(map(_combined_p, family))
    weights = _error_weights(family, p_values)
    corrected = holm(p_values, weights)
    same = holm([_combined_equivalence_p(hypothesis, rule) for hypothesis in family])
    claims: list[dict[Key, PairTest]] = [{} for _ in comparisons]
    columns = zip(family, weights, corrected, same, strict=True)
    for hypothesis, weight, corrected_p, same_p in columns:
        level = ALPHA * weight / rule.current_p_factor
        test = PairTest(hypothesis.pair, corrected_p, same_p, level)
        claims[hypothesis.comparison_index][hypothesis.key] = test
    tests = len(p_values) - sum(map(math.isnan, p_values))
    return [
        replace(comparison, claims=claims[place], rule=rule, tests=tests)
        for place, comparison in enumerate(comparisons)
    ]


def mark_interim(comparison: Comparison, open_runs: Collection[Path]) -> Comparison:
    """Return the comparison, marked as claiming nothing if it has one of ``open_runs``.

    ``open_runs``: directories of runs whose sweep has more runs to come.
    """
    if not any(run.dir in open_runs for run in comparison.runs):
        return comparison
    claims = {key: replace(claim, interim=True) for key, claim in comparison.claims.items()}
    return replace(comparison, claims=claims, rule=replace(comparison.rule, interim=True))


def _hypotheses(
    comparison_index: int, comparison: Comparison, rule: DecisionRule
) -> Iterator[Hypothesis]:
    """Yield a hypothesis for each two cells and measure, with their difference at each look."""
    pairs = dict(_claimable_pairs(comparison))
    looks = [
        (rule.p_factor(place), dict(_claimable_pairs(_restricted_to_look(comparison, seeds))))
        for place, seeds in enumerate(rule.seen)
    ] or [(rule.current_p_factor, pairs)]
    for key, pair in pairs.items():
        seen = [(price, look[key]) for price, look in looks if key in look]
        primary = key[0] == comparison.question.metric.name
        yield Hypothesis(comparison_index, key, pair, seen, primary)


def _restricted_to_look(comparison: Comparison, seeds: Collection[int | None]) -> Comparison:
    """Return the comparison restricted to the seeds of a look."""
    cells = []
    for cell in comparison.cells:
        runs = {seed: run for seed, run in cell.runs.items() if seed in seeds}
        cells.append(replace(cell, runs=runs))
    return replace(comparison, cells=tuple(cells))


def _combined_p(hypothesis: Hypothesis) -> float:
    """Combine p over all looks; ignore looks at which the difference had the other sign."""
    pair = hypothesis.pair
    if math.isnan(pair.p):
        return math.nan
    seen = [price * look.p for price, look in hypothesis.looks if look.mean * pair.mean > 0]
    return _smallest_p(seen, unknown=1.0)


def _combined_equivalence_p(hypothesis: Hypothesis, rule: DecisionRule) -> float:
    """Combine p of "they differ by the margin or more" over looks (Schuirmann 1987).

    The margin is in the unit of the deciding measure, so pairs by other measures are not tested.
    """
    margin = rule.equal_within
    if margin is None or not hypothesis.primary:
        return math.nan
    seen = [price * look.one_sided_p(margin - abs(look.mean)) for price, look in hypothesis.looks]
    return _smallest_p(seen, unknown=math.nan)


def _smallest_p(p_values: Sequence[float], unknown: float) -> float:
    """Return the smallest known p, at most 1; `unknown` if none is known."""
    known = [p for p in p_values if not math.isnan(p)]
    return min([1.0, *known]) if known else unknown


def _error_weights(family: Sequence[Hypothesis], p_values: Sequence[float]) -> list[float]:
    """Weight the tests: half for the deciding measure, half for all others, equal within each."""
    pairs = zip(family, p_values, strict=True)
    tested = Counter(hypothesis.primary for hypothesis, p in pairs if not math.isnan(p))
    if len(tested) == 2:
        return [0.5 / tested[hypothesis.primary] for hypothesis in family]
    return [1 / max(tested.total(), 1)] * len(family)


def _claimable_pairs(comparison: Comparison) -> Iterator[tuple[Key, Paired]]:
    """Yield (key, difference) of each two cells, by each measure, and by the bound if it decides.

    Measures of which neither direction is better are left out.
    """
    tables = [*comparison.measures.values()]
    if not comparison.deciding:
        tables.insert(0, comparison.bounds)
    for table in tables:
        if table.metric.better:
            for first, second in combinations(table.cells, 2):
                yield from _paired_differences(comparison, table, first, second)


def _paired_differences(
    comparison: Comparison, table: MeasureTable, first: str, second: str
) -> Iterator[tuple[Key, Paired]]:
    """Yield (key, paired difference) of two cells at each value of a measure's key."""
    items = None
    if table is comparison.bounds:
        runs_by_label = {cell.label: cell.runs for cell in comparison.cells}
        a = runs_by_label[first]
        b = runs_by_label[second]
        common = [seed for seed in a if seed in b]
        items = bound_by_item([b[seed] for seed in common], [a[seed] for seed in common])
    for place in range(len(table.values)):
        key = (table.metric.name, place, first, second)
        yield key, paired(table.seed_values(first, place), table.seed_values(second, place), items)


def seeds_to_try(comparison: Comparison) -> int:
    """Return the total number of seeds to try for the best setting's open pairs; 0 if none helps.

    It is `FIRST` if a pair has fewer than two common seeds, and `MAX_SEEDS` if these may settle a
    pair.
    """
    if comparison.rule.looks > 1 or comparison.rule.interim or comparison.is_unmeasured:
        return 0
    tests = open_tests(comparison)
    if any(test.pair.n < 2 for test in tests):
        return FIRST
    return MAX_SEEDS if any(map(may_settle, tests)) else 0


def may_settle(test: PairTest) -> bool:
    """Return whether the interval at `MAX_SEEDS` is expected to exclude zero.

    The true difference is assumed to be the measured one.
    """
    pair = test.pair
    if math.isnan(pair.p) or pair.n >= MAX_SEEDS:
        return False
    return abs(pair.mean) > pair.expected_half_width(MAX_SEEDS, test.level)


def open_tests(comparison: Comparison) -> list[PairTest]:
    """Return the undecided tests of the best setting against others.

    Pairs of settings that are both as good as true data are left out.
    """
    tests = []
    for place in range(1, len(comparison.ranked)):
        test = comparison.pair_test(0, place)
        if test.outcome == "open" and not comparison.are_at_floor(0, place):
            tests.append(test)
    return tests


def sweep_decision_rule(sweep: SweepRecord, looks: Looks) -> DecisionRule:
    """Return how a sweep's report decides: by its planned looks, and those taken so far."""
    # Use the recorded looks if the sweep's record plans none.
    planned = sweep.until or looks
    margin = planned.equal_within or sweep.equal_within
    seen = tuple(map(frozenset, looks.seeds))
    # A later command may plan fewer looks than were already taken.
    most = max(planned.looks, len(seen))
    # Between looks a report repeats the claims of the last look. Before the first look it has none.
    interim = most > 1 and not seen
    return DecisionRule(margin, most, seen, interim, planned.reported or looks.reported)


def joint_decision_rule(rules: Sequence[DecisionRule]) -> DecisionRule:
    """Return the rule of a report over several sweeps: the most looks, and a common margin."""
    if len(rules) == 1:
        return replace(rules[0], interim=False)
    margins = {rule.equal_within for rule in rules}
    margin = margins.pop() if len(margins) == 1 else None
    most = max(rule.looks for rule in rules)
    return DecisionRule(margin, most, reported=any(rule.reported for rule in rules))
