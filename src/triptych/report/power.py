"""What a comparison could have seen: power, the smallest difference resolved, how many seeds it would take.

Under a true difference d the mean of S seeds is N(d, A + B) and the estimate of A is A chi2_{S-1} / (S - 1):

    power(d) = E[ P( |N(d, A + B)| > critical(estimate of A, B) ) ]

over the same nodes as the test (`crossed`); without items this is the noncentral t. A falls as 1 / S; B,
what the items leave open, does not. The level is the one that holds if no other claim does (Holm's first
step), so the power is a lower limit of what the corrected test has.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import median

import numpy as np
from scipy.special import ndtr

from triptych.report import measures
from triptych.report.claims import Claim
from triptych.report.compare import Comparison
from triptych.report.crossed import Error, chi2_nodes, critical
from triptych.report.words import count, duration, listed, number

GOAL = 0.8
MOST = 200  # seeds; more are not suggested
NODES = 32
SHOWN = 4


def power(difference: float, error: Error, alpha: float) -> float:
    """Probability that a true difference is claimed at level `alpha`."""
    return float(_power(np.asarray(difference), error, alpha))


@lru_cache(maxsize=4096)  # asked again for each form of a report
def resolved(error: Error, alpha: float, goal: float = GOAL) -> float:
    """The smallest true difference that is claimed with probability `goal`."""
    limits = _limits(error, alpha)
    low, high = 0.0, math.sqrt(error.seeds + error.items)
    while _above(high, error, limits) < goal:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _above(middle, error, limits) < goal else (low, middle)
    return high


def seeds_needed(difference: float, error: Error, alpha: float, goal: float = GOAL) -> int | None:
    """How many seeds claim this difference with probability `goal`; None where `MOST` would not."""
    now = error.df + 1

    def enough(seeds: int) -> bool:
        later = Error(error.seeds * now / seeds, seeds - 1, error.items, error.n_items)
        return power(difference, later, alpha) >= goal

    if not enough(MOST):
        return None
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def reach(comparison: Comparison) -> list[str]:
    """Sentences: what these seeds resolve, and what it would take to separate the pairs that are level."""
    if measures.deciding(comparison) or len(comparison.cells) < 2:
        return []
    claims = {(i, j): comparison.claim(i, j) for j in range(len(comparison.cells)) for i in range(j)}
    known = {key: claim for key, claim in claims.items() if claim.pair.error is not None}
    if not known:
        return []
    unit = comparison.unit
    seeds = sorted({claim.pair.n for claim in known.values()})
    smallest = sorted(resolved(c.pair.error, c.level) for c in known.values() if c.pair.error)
    said = (
        f"With {listed(list(map(str, seeds)))} seeds a true difference of {number(median(smallest))} {unit}"
    )
    if len(smallest) > 1:
        said += f" (median over pairs; {number(smallest[0])} to {number(smallest[-1])})"
    said += (
        f" would be claimed four times in five, corrected for {count(comparison.tests, 'possible claim')}."
    )
    undecided = [key for key, c in known.items() if not c.holds and not c.equal]
    undecided.sort(key=lambda key: (key[0] != 0, key))
    wanted = [_wanted(comparison, i, j, known[i, j]) for i, j in undecided[:SHOWN]]
    if wanted:
        wanted.append(
            "These counts take the differences and spreads measured here for the true ones: an order of "
            "magnitude, not a promise."
        )
    return [said, *wanted]


def _wanted(comparison: Comparison, i: int, j: int, claim: Claim) -> str:
    pair, error = claim.pair, claim.pair.error
    assert error is not None
    names = f"{comparison.cells[i].label} and {comparison.cells[j].label}"
    apart = f"To tell {names} apart (measured {number(abs(pair.mean))} {comparison.unit})"
    needed = seeds_needed(abs(pair.mean), error, claim.level)
    if needed is None:
        without = Error(error.seeds * pair.n / MOST, MOST - 1)
        if error.items and power(abs(pair.mean), without, claim.level) >= GOAL:
            return f"{apart}, no number of seeds would do: the {error.n_items} test items leave it open."
        return f"{apart}, {MOST} seeds would not do."
    more = max(needed - pair.n, 1)
    each = [
        sum(run.seconds.values()) for cell in comparison.cells for run in cell.runs.values() if run.seconds
    ]
    cost = ""
    if each:
        total = more * len(comparison.cells) * math.fsum(each) / len(each)
        cost = f", {duration(total)} of computing"
    return (
        f"{apart} would take about {max(needed, pair.n + 1)} seeds: {more} more of "
        f"each of {count(len(comparison.cells), 'setting')}{cost}."
    )


def _power(difference: np.ndarray, error: Error, alpha: float) -> np.ndarray:
    return _above(difference, error, _limits(error, alpha))


def _limits(error: Error, alpha: float) -> np.ndarray:
    """The critical distance at each possible estimate of the variance over seeds."""
    quantiles, _ = chi2_nodes(error.df, 64)
    return critical(alpha, error.seeds * quantiles, error.df, error.items, error.n_items, nodes=NODES)


def _above(difference: float | np.ndarray, error: Error, limits: np.ndarray) -> np.ndarray:
    _, weights = chi2_nodes(error.df, 64)
    spread = math.sqrt(error.seeds + error.items)
    beyond = ndtr((difference - limits) / spread) + ndtr((-difference - limits) / spread)
    return (weights * beyond).sum() / weights.sum()
