"""Compute the power of a test, and a range of seeds that settles a pair (docs/comparing.md).

Power: the probability that the test of two settings is significant. With a true difference d, the
mean difference over S seeds is N(d, A + B), where A is its variance over seeds and B that over test
items. A falls as 1 / S, B does not.

    power(d) = E[ P( |N(d, A + B)| > critical(A*, B) ) ],  A* ~ A chi2_{S-1} / (S - 1)

A*: the estimate of A; critical(A*, B): the smallest significant difference (`MeanError.critical`).
The expectation is a quadrature over A*; without items it is the power of a t-test. The level is
that of Holm's first step, at which no other test is significant, so the corrected test has at least
this power.

The number of seeds that settles a pair depends on a difference and a variance that are only
estimated. Their confidence distribution is that of the test: A* as above, and d* from
N(mean, A* + B). A number of seeds has confidence c if it has the power `GOAL` with probability c
over (d*, A*). Without items the limits on d* / sqrt(A*) are the exact ones of the noncentral t.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr

from triptych.study.statistics import MeanError, Paired, chi2_nodes

GOAL = 0.8  # power at which a number of seeds suffices
TAIL = 0.1  # share of reports whose range of seeds is too low; the same share is too high
MOST = 100  # largest number of seeds that is considered; a range beyond it has no upper end
NODES = 32  # quadrature nodes of a critical distance
COARSE = 12  # quadrature nodes of each integral of `seed_range`
GRID = 32  # number of critical distances that are computed; others are interpolated


def critical_limits(
    error: MeanError, alpha: float, nodes: int = NODES
) -> tuple[np.ndarray, np.ndarray]:
    """Return the critical distance at each node of a quadrature over A*, and the node's weight.

    A*: the estimate of the variance over seeds; ``error``: the true variances; ``alpha``: the level
    of the test.
    """
    quantiles, weights = chi2_nodes(error.df, 2 * nodes)
    weights = weights / weights.sum()
    seed_variance = np.asarray(error.seed_variance)[..., None] * quantiles
    estimates = replace(error, seed_variance=seed_variance)
    if not error.item_variance or np.ndim(error.seed_variance) == 0:
        return estimates.critical(alpha, nodes=nodes), weights
    # In units of the standard error the distance is a smooth function of the logarithm of A / B.
    grid = np.geomspace(seed_variance.min(), seed_variance.max(), GRID)
    distances = replace(error, seed_variance=grid).critical(alpha, nodes=nodes)
    in_errors = distances / np.sqrt(grid + error.item_variance)
    limits = np.interp(np.log(seed_variance), np.log(grid), in_errors)
    return limits * np.sqrt(seed_variance + error.item_variance), weights


def claim_power(
    difference: Any, error: MeanError, limits: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Compute the probability that the test of a true difference is significant; elementwise.

    `limits`, `weights`: as returned by `critical_limits`.
    """
    spread = np.sqrt(error.seed_variance + error.item_variance)[..., None]
    difference = np.asarray(difference)[..., None]
    beyond = ndtr((difference - limits) / spread) + ndtr((-difference - limits) / spread)
    return (weights * beyond).sum(-1)


def detectable_difference(error: MeanError, alpha: float, nodes: int = NODES) -> np.ndarray:
    """Return the true difference that is significant with probability `GOAL`; elementwise."""
    limits, weights = critical_limits(error, alpha, nodes)
    low = np.zeros(np.shape(error.seed_variance))
    high = limits.max(-1) + 9 * np.sqrt(error.seed_variance + error.item_variance)
    for _ in range(40):
        middle = (low + high) / 2
        enough = claim_power(middle, error, limits, weights) >= GOAL
        low = np.where(enough, low, middle)
        high = np.where(enough, middle, high)
    return high


@dataclass(frozen=True)
class SeedRange:
    """A range of numbers of seeds per setting; an end above `MOST` is not known."""

    low: int
    high: int


@lru_cache(maxsize=1024)
def seed_range(pair: Paired, alpha: float, level: float) -> SeedRange:
    """Return a range that contains, in 8 of 10 reports, the number of seeds that settles a pair.

    That number is the smallest above the present one with which the true difference is significant
    at level `alpha` with probability `GOAL`. `level`: the level of the test that left the pair
    open.
    """
    at_limit = replace(pair, mean=float(pair.error.critical(level)))

    @lru_cache
    def differences(seeds: int) -> np.ndarray:
        return detectable_difference(_error_with_seeds(pair, seeds), alpha, COARSE)

    def may_suffice(seeds: int) -> bool:
        # Only open pairs get a range, so take the share relative to the chance of being open.
        open_share = _confidence(at_limit, differences(seeds))
        return _confidence(pair, differences(seeds)) >= TAIL * open_share

    def must_suffice(seeds: int) -> bool:
        return _confidence(pair, differences(seeds)) >= 1 - TAIL

    return SeedRange(
        _smallest_sufficient(may_suffice, pair.n + 1),
        _smallest_sufficient(must_suffice, pair.n + 1),
    )


def _smallest_sufficient(is_enough: Callable[[int], bool], start: int) -> int:
    """Return the smallest number from `start` on that is enough; one above `MOST` if none is."""
    return start + bisect_left(range(start, MOST + 1), True, key=is_enough)


def _error_with_seeds(pair: Paired, seeds: int) -> MeanError:
    """Return the error of a pair's mean if it had this many seeds.

    It is an array over the quadrature nodes of the unknown variance over seeds.
    """
    quantiles, _ = chi2_nodes(pair.error.df, COARSE)
    seed_variance = pair.error.seed_variance / quantiles * pair.n / seeds
    return MeanError(seed_variance, seeds - 1, pair.error.item_variance, pair.error.n_items)


def _confidence(pair: Paired, differences: np.ndarray) -> float:
    """Return the confidence that a pair's true difference exceeds a limit.

    `differences`: the limit at each quadrature node of the variance over seeds. The true difference
    is assumed to have the sign of the measured one.
    """
    quantiles, weights = chi2_nodes(pair.error.df, COARSE)
    spread = np.sqrt(pair.error.seed_variance / quantiles + pair.error.item_variance)
    share = ndtr((abs(pair.mean) - differences) / spread)
    return float((weights * share).sum() / weights.sum())
