"""Error of a mean over seeds and items, both of which are random samples (docs/comparing.md).

    A = MS_seeds / (S I), of S - 1 degrees of freedom;  B = (MS_items - MS_rest) / (S I), of I - 1
    p(x) = E[ P(|t_{I-1}| > x / sqrt(A* + B)) ],  A* = A (S - 1) / chi2_{S-1}     (Behrens and Fisher)

exact where one of the two dominates, and never above its level in between.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize.elementwise import find_root
from scipy.special import gammaincinv, stdtr, stdtrit

NODES = 64


@dataclass(frozen=True)
class Error:
    """Variance of a mean: of seeds, from `df` degrees of freedom, plus of items, from `n_items` - 1.

    Both may be arrays: what follows from them is elementwise.
    """

    of_seeds: Any
    df: int
    of_items: Any = 0.0
    n_items: int = 0

    def p(self, distance: Any, nodes: int = NODES) -> Any:
        """Return the two-sided p of a mean at this distance from the hypothesis."""
        distance, seeds, items = np.broadcast_arrays(np.abs(distance), self.of_seeds, self.of_items)
        if not np.any(items):
            with np.errstate(divide="ignore", invalid="ignore"):
                return 2 * stdtr(self.df, -distance / np.sqrt(seeds))
        quantiles, weights = chi2_nodes(self.df, nodes)
        b = items[..., None]
        # seeds that changed nothing divide nothing by zero
        a = np.maximum(seeds[..., None], 1e-30 * b) / quantiles
        each = 2 * stdtr(self.n_items - 1, -distance[..., None] / np.sqrt(a + b))
        return (weights * each).sum(-1) / weights.sum()

    def critical(self, alpha: float, nodes: int = NODES) -> Any:
        """Return the distance whose two-sided p is `alpha`: half the width of an interval."""
        seeds, items = np.broadcast_arrays(np.asarray(self.of_seeds, float), np.asarray(self.of_items, float))
        if not np.any(items):
            return stdtrit(self.df, 1 - alpha / 2) * np.sqrt(seeds)

        def excess(x: np.ndarray, seeds: np.ndarray, items: np.ndarray) -> np.ndarray:
            return np.log(Error(seeds, self.df, items, self.n_items).p(x, nodes)) - np.log(alpha)

        high = 2 * np.sqrt(seeds + items)
        while np.any((above := excess(high, seeds, items)) > 0):
            high = np.where(above > 0, 2 * high, high)
        return find_root(excess, (np.zeros(seeds.shape), high), args=(seeds, items)).x


def crossed(differences: np.ndarray) -> Error:
    """Return the error of the mean of differences (..., seeds, items); at least two seeds.

    One item has no spread: the error is that over seeds.
    """
    s, i = differences.shape[-2:]
    if i == 1:
        return Error(differences[..., 0].var(-1, ddof=1) / s, s - 1)
    seeds, items, rest = mean_squares(differences)
    return Error(seeds / (s * i), s - 1, np.maximum(items - rest, 0) / (s * i), i)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute MS_seeds, MS_items, MS_rest of (..., seeds, items): the two-way analysis of variance."""
    s, i = differences.shape[-2:]
    mean = differences.mean((-2, -1), keepdims=True)
    a = differences.mean(-1, keepdims=True) - mean
    b = differences.mean(-2, keepdims=True) - mean
    total = ((differences - mean) ** 2).sum((-2, -1))
    sum_a, sum_b = i * (a**2).sum((-2, -1)), s * (b**2).sum((-2, -1))
    return sum_a / (s - 1), sum_b / (i - 1), np.maximum(total - sum_a - sum_b, 0) / ((s - 1) * (i - 1))


@lru_cache(maxsize=64)
def chi2_nodes(df: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles of chi2_df / df and weights: Gauss-Legendre in v, where the probability is v^4."""
    v, weights = np.polynomial.legendre.leggauss(nodes)
    v = (v + 1) / 2  # v^4 puts nodes into the far tail: a p of 1e-9 is right to a few parts in 1e5
    return 2 * gammaincinv(df / 2, v**4) / df, weights / 2 * 4 * v**3
