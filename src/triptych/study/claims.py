"""Correct all claims of a report as one family, by Holm's method (docs/comparing.md).

The question that the report asks, the bound or the measure that decides, has half of the error to itself
(weighted Holm), so that many measures do not drown it. Each of `looks` planned looks may spend an equal share
of the 5% (alpha spending, Lan & DeMets 1983, with the union bound): what enters Holm's test is `looks` times
the smallest p of the looks taken.

Power: under a true difference d the mean of S seeds is N(d, A + B), as in `statistics`:

    power(d) = E[ P( |N(d, A + B)| > critical(estimate of A, B) ) ],  estimate of A ~ A chi2_{S-1} / (S - 1)

over the same nodes as the test; without items the noncentral t. A falls as 1 / S, B does not. The level is
the one that holds if no other claim does (Holm's first step), so the power is a lower limit of what the
corrected test has.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations

from scipy.special import ndtr

from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import Comparison, Key, PairTest, Rule, bound_by_item
from triptych.study.statistics import ALPHA, Error, Paired, chi2_nodes, holm, paired

GOAL = 0.8
MOST = 200  # seeds; more are not suggested
FIRST = 3  # seeds that are suggested where there is one
NODES = 32


def correct(comparisons: Sequence[Comparison], rule: Rule) -> list[Comparison]:
    """Return the comparisons of one report, each with its claims under the one correction."""
    family = []  # number of the comparison, key, pair, the pair at each look, whether it decides
    for k, comparison in enumerate(comparisons):
        pairs = dict(_pairs(comparison))
        looks = []
        for seeds in rule.seen:  # the same, over the seeds that a look had
            cells = (
                replace(c, runs={s: r for s, r in c.runs.items() if s in seeds}) for c in comparison.cells
            )
            looks.append(dict(_pairs(replace(comparison, cells=tuple(cells)))))
        for key, pair in pairs.items():
            primary = key[0] == comparison.question.metric.name
            family.append((k, key, pair, [look[key] for look in looks or [pairs] if key in look], primary))
    p = [_p(pair, looks, rule) for _, _, pair, looks, _ in family]
    weights = _weights([primary for *_, primary in family], p)
    # the margin is in the unit of the question; the other measures have units of their own
    same = holm([_same(looks, rule) if primary else math.nan for *_, looks, primary in family])
    claims: list[dict[Key, PairTest]] = [{} for _ in comparisons]
    corrected = zip(family, p, holm(p, weights), same, weights, strict=True)
    for (k, key, pair, *_), one, q, alike, weight in corrected:
        first = ALPHA * weight / rule.looks
        claims[k][key] = PairTest(pair, q, alike, first, ALPHA * one / q / rule.looks if q > 0 else first)
    tests = sum(not math.isnan(value) for value in p)
    return [replace(c, claims=claims[k], rule=rule, tests=tests) for k, c in enumerate(comparisons)]


def unsettle(comparison: Comparison) -> Comparison:
    """Return the comparison while runs of it are to come: it claims nothing."""
    claims = {key: replace(claim, interim=True) for key, claim in comparison.claims.items()}
    return replace(comparison, claims=claims, rule=replace(comparison.rule, interim=True))


def _p(pair: Paired, looks: list[Paired], rule: Rule) -> float:
    """Combine the pair's p over all looks; a look with the other sign does not count."""
    seen = [look.p for look in looks if not math.isnan(look.p) and look.mean * pair.mean > 0]
    return min(1.0, rule.looks * min(seen)) if seen else math.nan if math.isnan(pair.p) else 1.0


def _same(looks: list[Paired], rule: Rule) -> float:
    """Combine p of "they differ by the margin or more": larger of two one-sided tests (Schuirmann 1987)."""
    if rule.equal_within is None:
        return math.nan
    each = (look.not_beyond(rule.equal_within - abs(look.mean)) for look in looks)
    seen = [p for p in each if not math.isnan(p)]
    return min(1.0, rule.looks * min(seen)) if seen else math.nan


def _weights(primary_of: list[bool], p: list[float]) -> list[float]:
    """Share out the error: one half to the question and one half to all else, equal within each."""
    known = [primary for primary, value in zip(primary_of, p, strict=True) if not math.isnan(value)]
    first, rest = sum(known), len(known) - sum(known)
    if not first or not rest:
        return [1 / max(len(known), 1)] * len(p)
    return [0.5 / first if primary else 0.5 / rest for primary in primary_of]


def _pairs(comparison: Comparison) -> Iterator[tuple[Key, Paired]]:
    """Yield each pair that may be claimed: by each measure and, by item too, by the bound if it decides."""
    bounds, cells = comparison.bounds, {cell.label: cell for cell in comparison.cells}
    for table in (*([] if comparison.deciding else [bounds]), *comparison.measures.values()):
        for one, two in combinations(table.cells, 2) if table.metric.better else ():
            a, b = cells[one], cells[two]
            common = [seed for seed in a.runs if seed in b.runs] if table is bounds else []
            items = bound_by_item((b.runs[seed] for seed in common), (a.runs[seed] for seed in common))
            for at in range(len(table.values)):
                first, second = ({seed: v[at] for seed, v in table.cells[x].items()} for x in (one, two))
                yield (table.metric.name, at, one, two), paired(first, second, items)


def power(difference: float, error: Error, alpha: float) -> float:
    """Compute the probability that a true difference is claimed at level `alpha`."""
    quantiles, weights = chi2_nodes(error.df, 64)
    # the critical distance at each possible estimate of the variance over seeds
    limits = replace(error, of_seeds=error.of_seeds * quantiles).critical(alpha, nodes=NODES)
    spread = math.sqrt(error.of_seeds + error.of_items)
    beyond = ndtr((difference - limits) / spread) + ndtr((-difference - limits) / spread)
    return float((weights * beyond).sum() / weights.sum())


@lru_cache(maxsize=4096)
def seeds_needed(difference: float, error: Error, alpha: float) -> int | None:
    """Return how many seeds claim this difference with probability `GOAL`; None where `MOST` would not."""
    now = error.df + 1

    def enough(seeds: int) -> bool:
        later = Error(error.of_seeds * now / seeds, seeds - 1, error.of_items, error.n_items)
        return power(difference, later, alpha) >= GOAL

    if not enough(MOST):
        return None
    return 2 + bisect_left(range(2, MOST), True, key=enough)


def seeds_to_settle(claim: PairTest) -> int | None:
    """Return how many seeds in all would claim the measured difference; None: over `MOST`, or unknown."""
    pair = claim.pair
    needed = seeds_needed(abs(pair.mean), pair.error, claim.level) if pair.error else None
    return None if needed is None else max(needed, pair.n + 1)


def seeds_next(comparison: Comparison) -> int:
    """Return how many seeds in all would settle the open pairs of the best, as far as seeds can; 0: none."""
    if comparison.rule.looks > 1 or comparison.rule.interim or comparison.is_unmeasured:
        return 0
    table = comparison.question
    name, last, order = table.metric.name, len(table.values) - 1, table.order(-1)
    claims = [comparison.sampled(name, last, order[0], other) for other in order[1:]]
    claims = [claim for claim in claims if not claim.holds and not claim.equal]
    if any(claim.pair.n < 2 for claim in claims):
        return FIRST
    return max(filter(None, map(seeds_to_settle, claims)), default=0)


def extra_seconds(comparison: Comparison, seeds: int) -> float:
    """Estimate the seconds of the runs that each setting lacks of `seeds` in all; NaN unknown."""
    each = [run.took for run in comparison.runs if run.seconds]
    more = sum(max(seeds - len(cell.runs), 0) for cell in comparison.cells)
    return more * math.fsum(each) / len(each) if each else math.nan


def rule_of(sweep: SweepRecord, looks: Looks) -> Rule:
    """Return how a sweep's report decides: by its planned looks, and those taken so far."""
    # Without the sweep's word, the looks were taken all the same.
    planned = sweep.until or looks
    margin = planned.equal_within or sweep.equal_within
    seen = tuple(map(frozenset, looks.seeds))
    # A later command may plan fewer looks; those that were taken still count.
    most = max(planned.looks, len(seen))
    # Between looks a report claims what the last look claimed; before the first, nothing.
    return Rule(margin, most, seen, interim=most > 1 and not seen)


def joint_rule(rules: Sequence[Rule]) -> Rule:
    """Return the rule of a report over several sweeps: the most looks, and a margin that all have."""
    if len(rules) == 1:
        return replace(rules[0], interim=False)
    margins = {rule.equal_within for rule in rules}
    return Rule(margins.pop() if len(margins) == 1 else None, max((rule.looks for rule in rules), default=1))
