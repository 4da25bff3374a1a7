"""Error of a mean over seeds and items, both of which are random samples.

    D[s, i] = mu + a_s + b_i + e_si        Var(mean) = (MS_seeds + MS_items - MS_rest) / (S I)

is a sum of two variances: A = MS_seeds / (S I), known from S - 1 degrees of freedom (two, of three seeds),
and B = (MS_items - MS_rest) / (S I), known from I - 1 (hundreds). The mean's distribution is that of
Behrens and Fisher: A Student-t with S - 1 degrees of freedom scaled by sqrt(A), plus a nearly normal one
scaled by sqrt(B):

    p(x) = E[ P(|t_{I-1}| > x / sqrt(A* + B)) ],  A* = A (S - 1) / chi2_{S-1}

exact where one of the two dominates, and never above its level in between. Satterthwaite's degrees of
freedom are estimated from the same three seeds: at a level of .005, which a correction for ten pairs asks
for, they err five times as often as announced (docs/comparing.md). A 95% interval from p alone covers up to
97.7%; weights (1 + B / A*)^(1/3), which favour small A* where items dominate, bring it to 94.8 - 97.0%.
They hold at 95%, not at stricter levels, so p goes without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize.elementwise import find_root
from scipy.special import gammaincinv, stdtr, stdtrit

NODES = 64
TILT = 1 / 3


@dataclass(frozen=True)
class Error:
    """Variance of a mean: of seeds, from `df` degrees of freedom, plus of items, from `n_items` - 1."""

    of_seeds: float
    df: int
    of_items: float = 0.0
    n_items: int = 0

    def p(self, distance: float) -> float:
        """Return the two-sided p of a mean at this distance from the hypothesis."""
        return float(tail(distance, self.of_seeds, self.df, self.of_items, self.n_items))

    def half(self, alpha: float) -> float:
        """Return half the width of the interval at level 1 - `alpha`."""
        return self.distance(alpha, TILT)

    @lru_cache(maxsize=4096)  # noqa: B019  # a report shows each several times
    def distance(self, p: float, tilt: float = 0.0) -> float:
        """Return the distance of a mean whose two-sided p is this one."""
        return float(critical(p, self.of_seeds, self.df, self.of_items, self.n_items, tilt))


def crossed(differences: np.ndarray) -> Error:
    """Return the error of the mean of differences (seeds, items); at least two of each."""
    s, i = differences.shape
    seeds, items, rest = mean_squares(differences)
    return Error(float(seeds) / (s * i), s - 1, max(0.0, float(items - rest)) / (s * i), i)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute MS_seeds, MS_items, MS_rest of (..., seeds, items): the two-way analysis of variance."""
    s, i = differences.shape[-2:]
    mean = differences.mean((-2, -1), keepdims=True)
    a = differences.mean(-1, keepdims=True) - mean
    b = differences.mean(-2, keepdims=True) - mean
    total = ((differences - mean) ** 2).sum((-2, -1))
    sum_a, sum_b = i * (a**2).sum((-2, -1)), s * (b**2).sum((-2, -1))
    return sum_a / (s - 1), sum_b / (i - 1), np.maximum(total - sum_a - sum_b, 0) / ((s - 1) * (i - 1))


def tail(
    distance: Any,
    seeds: Any,
    df: int,
    items: Any = 0.0,
    n_items: int = 0,
    tilt: float = 0.0,
    nodes: int = NODES,
) -> Any:
    """Compute two-sided p(distance), elementwise over arrays of distances and of both variances."""
    distance, seeds, items = np.broadcast_arrays(*map(np.asarray, (np.abs(distance), seeds, items)))
    if not np.any(items):
        with np.errstate(divide="ignore", invalid="ignore"):
            return 2 * stdtr(df, -distance / np.sqrt(seeds))
    quantiles, weights = chi2_nodes(df, nodes)
    b = items[..., None]
    # seeds that changed nothing divide nothing by zero
    a = np.maximum(seeds[..., None], 1e-30 * b) / quantiles
    weights = weights * (1 + b / a) ** tilt
    each = 2 * stdtr(n_items - 1, -distance[..., None] / np.sqrt(a + b))
    return (weights * each).sum(-1) / weights.sum(-1)


def critical(
    alpha: float,
    seeds: Any,
    df: int,
    items: Any = 0.0,
    n_items: int = 0,
    tilt: float = 0.0,
    nodes: int = NODES,
) -> np.ndarray:
    """Return the distance whose two-sided p is `alpha`, elementwise."""
    seeds, items = np.broadcast_arrays(np.asarray(seeds, float), np.asarray(items, float))
    if not np.any(items):
        return stdtrit(df, 1 - alpha / 2) * np.sqrt(seeds)

    def excess(x: np.ndarray, seeds: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.log(tail(x, seeds, df, items, n_items, tilt, nodes)) - np.log(alpha)

    high = 2 * np.sqrt(seeds + items)
    while np.any((above := excess(high, seeds, items)) > 0):
        high = np.where(above > 0, 2 * high, high)
    return find_root(excess, (np.zeros(seeds.shape), high), args=(seeds, items)).x


@lru_cache(maxsize=64)
def chi2_nodes(df: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles of chi2_df / df and weights: Gauss-Legendre in v, where the probability is v^4.

    The fourth power puts nodes into the far tail, so that a p of 1e-9 is right to a few parts in 1e5.
    """
    v, weights = np.polynomial.legendre.leggauss(nodes)
    v = (v + 1) / 2
    return 2 * gammaincinv(df / 2, v**4) / df, weights / 2 * 4 * v**3
