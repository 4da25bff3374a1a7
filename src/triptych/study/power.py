"""What a comparison could have seen: power, and how many seeds a claim would take.

Under a true difference d the mean of S seeds is N(d, A + B); A, of seeds, and B, of items, as in `crossed`:

    power(d) = E[ P( |N(d, A + B)| > critical(estimate of A, B) ) ],  estimate of A ~ A chi2_{S-1} / (S - 1)

over the same nodes as the test; without items the noncentral t. A falls as 1 / S, B does not. The level is
the one that holds if no other claim does (Holm's first step), so the power is a lower limit of what the
corrected test has.
"""

import math
from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache

from scipy.special import ndtr

from triptych.study.cells import Comparison, PairTest
from triptych.study.crossed import Error, chi2_nodes

GOAL = 0.8
MOST = 200  # seeds; more are not suggested
FIRST = 3  # seeds that are suggested where there is one
NODES = 32


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
