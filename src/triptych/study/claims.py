"""Correct all claims of a report as one family, by Holm's method (docs/comparing.md).

The question that the report asks, the bound or the measure that decides, has half of the error to
itself (weighted Holm), so that many measures do not drown it. Each of `looks` planned looks may
spend an equal share of the 5% (alpha spending, Lan & DeMets 1983, with the union bound): what
enters Holm's test is `looks` times the smallest p of the looks taken.

Power: under a true difference d the mean of S seeds is N(d, A + B), as in `statistics`:

    power(d) = E[ P( |N(d, A + B)| > critical(A*, B) ) ],  A* ~ A chi2_{S-1} / (S - 1)

over the same nodes as the test; without items the noncentral t. A falls as 1 / S, B does not. The
level is the one that holds if no other claim does (Holm's first step), so the power is a lower
limit of what the corrected test has.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from scipy.special import ndtr

from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import (
    Comparison,
    DecisionRule,
    Key,
    MeasureTable,
    PairTest,
    bound_by_item,
)
from triptych.study.statistics import ALPHA, MeanError, Paired, chi2_nodes, holm, paired

GOAL = 0.8
MOST = 200  # maximum number of seeds that a report suggests
FIRST = 3  # number of seeds that a report suggests if a setting has one
NODES = 32


@dataclass(frozen=True)
class Hypothesis:
    """Two cells of comparison `comparison_index`: their pair, and the pair at each look so far.

    `primary`: whether it is about what decides.
    """

    comparison_index: int
    key: Key
    pair: Paired
    looks: Sequence[Paired]
    primary: bool


def correct_for_multiple_tests(
    comparisons: Sequence[Comparison], rule: DecisionRule
) -> list[Comparison]:
    """Return the comparisons of one report, each with its claims under the one correction."""
    family: list[Hypothesis] = []
    for place, comparison in enumerate(comparisons):
        family += _hypotheses(place, comparison, rule)
    p_values = [_combined_p(hypothesis, rule) for hypothesis in family]
    weights = _error_weights(family, p_values)
    corrected = holm(p_values, weights)
    same = holm([_combined_equivalence_p(hypothesis, rule) for hypothesis in family])
    claims: list[dict[Key, PairTest]] = [{} for _ in comparisons]
    columns = zip(family, weights, p_values, corrected, same, strict=True)
    for hypothesis, weight, p, corrected_p, same_p in columns:
        level = step_level = ALPHA * weight / rule.looks
        if corrected_p > 0:
            step_level = ALPHA * p / corrected_p / rule.looks
        test = PairTest(hypothesis.pair, corrected_p, same_p, level, step_level)
        claims[hypothesis.comparison_index][hypothesis.key] = test
    tests = len(p_values) - sum(map(math.isnan, p_values))
    return [
        replace(comparison, claims=claims[place], rule=rule, tests=tests)
        for place, comparison in enumerate(comparisons)
    ]


def mark_interim(comparison: Comparison, open_runs: Collection[Path]) -> Comparison:
    """Return the comparison without claims if it has runs of a sweep with more to come."""
    if not any(run.dir in open_runs for run in comparison.runs):
        return comparison
    claims = {key: replace(claim, interim=True) for key, claim in comparison.claims.items()}
    return replace(comparison, claims=claims, rule=replace(comparison.rule, interim=True))


def _hypotheses(
    comparison_index: int, comparison: Comparison, rule: DecisionRule
) -> Iterator[Hypothesis]:
    pairs = dict(_claimable_pairs(comparison))
    looks = [
        dict(_claimable_pairs(_restricted_to_look(comparison, seeds))) for seeds in rule.seen
    ] or [pairs]
    for key, pair in pairs.items():
        seen = [look[key] for look in looks if key in look]
        primary = key[0] == comparison.question.metric.name
        yield Hypothesis(comparison_index, key, pair, seen, primary)


def _restricted_to_look(comparison: Comparison, seeds: Collection[int | None]) -> Comparison:
    """Return the comparison restricted to the seeds of a look."""
    cells = []
    for cell in comparison.cells:
        runs = {seed: run for seed, run in cell.runs.items() if seed in seeds}
        cells.append(replace(cell, runs=runs))
    return replace(comparison, cells=tuple(cells))


def _combined_p(hypothesis: Hypothesis, rule: DecisionRule) -> float:
    """Combine the pair's p over all looks; a look with the other sign does not count."""
    pair = hypothesis.pair
    if math.isnan(pair.p):
        return math.nan
    seen = [look.p for look in hypothesis.looks if look.mean * pair.mean > 0]
    return _over_looks(seen, rule, unknown=1.0)


def _combined_equivalence_p(hypothesis: Hypothesis, rule: DecisionRule) -> float:
    """Combine p of "they differ by the margin or more" over looks (Schuirmann 1987).

    The margin is in the unit of the question, and measures beside it have units of their own.
    """
    margin = rule.equal_within
    if margin is None or not hypothesis.primary:
        return math.nan
    seen = [look.one_sided_p(margin - abs(look.mean)) for look in hypothesis.looks]
    return _over_looks(seen, rule, unknown=math.nan)


def _over_looks(p_values: Sequence[float], rule: DecisionRule, unknown: float) -> float:
    """Return the smallest known p times the number of planned looks."""
    known = [p for p in p_values if not math.isnan(p)]
    return min([1.0, *(rule.looks * p for p in known)]) if known else unknown


def _error_weights(family: Sequence[Hypothesis], p_values: Sequence[float]) -> list[float]:
    """Share out the error: one half to the question and one half to all else, equal within each."""
    pairs = zip(family, p_values, strict=True)
    tested = Counter(hypothesis.primary for hypothesis, p in pairs if not math.isnan(p))
    if len(tested) == 2:
        return [0.5 / tested[hypothesis.primary] for hypothesis in family]
    return [1 / max(tested.total(), 1)] * len(family)


def _claimable_pairs(comparison: Comparison) -> Iterator[tuple[Key, Paired]]:
    """Yield each pair that may be claimed: by each measure, and by the bound if it decides."""
    tables = [*comparison.measures.values()]
    if not comparison.deciding:
        tables.insert(0, comparison.bounds)
    for table in tables:
        if table.metric.better:
            for first, second in combinations(table.cells, 2):
                yield from _metric_pairs(comparison, table, first, second)


def _metric_pairs(
    comparison: Comparison, table: MeasureTable, first: str, second: str
) -> Iterator[tuple[Key, Paired]]:
    items = None
    if table is comparison.bounds:
        runs_by_label = {cell.label: cell.runs for cell in comparison.cells}
        a, b = runs_by_label[first], runs_by_label[second]
        common = [seed for seed in a if seed in b]
        items = bound_by_item([b[seed] for seed in common], [a[seed] for seed in common])
    for place in range(len(table.values)):
        key = (table.metric.name, place, first, second)
        yield key, paired(table.seed_values(first, place), table.seed_values(second, place), items)


def test_power(difference: float, error: MeanError, alpha: float) -> float:
    """Compute the probability that a true difference is claimed at level `alpha`."""
    quantiles, weights = chi2_nodes(error.df, 64)
    # Limits are the critical distance at each possible estimate of the variance over seeds
    limits = replace(error, of_seeds=error.of_seeds * quantiles).critical(alpha, nodes=NODES)
    spread = math.sqrt(error.of_seeds + error.of_items)
    beyond = ndtr((difference - limits) / spread) + ndtr((-difference - limits) / spread)
    return float((weights * beyond).sum() / weights.sum())


@lru_cache(maxsize=4096)
def seeds_needed(difference: float, error: MeanError, alpha: float) -> int | None:
    """Return how many seeds claim this difference with probability `GOAL`; None over `MOST`."""
    now = error.df + 1

    def enough(seeds: int) -> bool:
        later = MeanError(error.of_seeds * now / seeds, seeds - 1, error.of_items, error.n_items)
        return test_power(difference, later, alpha) >= GOAL

    if not enough(MOST):
        return None
    return 2 + bisect_left(range(2, MOST), True, key=enough)


def seeds_to_settle(claim: PairTest) -> int | None:
    """Return how many seeds in all would claim the measured difference; None if unknown."""
    pair = claim.pair
    if math.isnan(pair.p):
        return None
    needed = seeds_needed(abs(pair.mean), pair.error, claim.level)
    return None if needed is None else max(needed, pair.n + 1)


def seeds_to_settle_best(comparison: Comparison) -> int:
    """Return how many seeds in all would settle the open pairs of the best; 0 if none would."""
    if comparison.rule.looks > 1 or comparison.rule.interim or comparison.is_unmeasured:
        return 0
    table = comparison.question
    last = len(table.values) - 1
    order = table.ranked_labels(last)
    claims = [
        comparison.metric_test(table.metric.name, last, order[0], other) for other in order[1:]
    ]
    claims = [claim for claim in claims if claim.outcome == "open"]
    if any(claim.pair.n < 2 for claim in claims):
        return FIRST
    return max((seeds_to_settle(claim) or 0 for claim in claims), default=0)


def sweep_decision_rule(sweep: SweepRecord, looks: Looks) -> DecisionRule:
    """Return how a sweep's report decides: by its planned looks, and those taken so far."""
    # Use the recorded looks if the sweep's record plans none.
    planned = sweep.until or looks
    margin = planned.equal_within or sweep.equal_within
    seen = tuple(map(frozenset, looks.seeds))
    # A later command may plan fewer looks than were already taken.
    most = max(planned.looks, len(seen))
    # Between looks a report repeats the claims of the last look. Before the first look it has none.
    return DecisionRule(margin, most, seen, interim=most > 1 and not seen)


def joint_decision_rule(rules: Sequence[DecisionRule]) -> DecisionRule:
    """Return the rule of a report over several sweeps: the most looks, and a common margin."""
    if len(rules) == 1:
        return replace(rules[0], interim=False)
    margins = {rule.equal_within for rule in rules}
    margin = margins.pop() if len(margins) == 1 else None
    return DecisionRule(margin, max(rule.looks for rule in rules))
