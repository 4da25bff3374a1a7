"""Statistics of a few seeds and a few hundred items: means, differences, intervals, Holm.

Settings of one seed share initial weights, batches, noise and items, so tests use differences that
are paired by seed, not pooled variances. The mean of differences over S seeds and I items, both of
which are random samples, has the variance A + B (docs/comparing.md):

    A = MS_seeds / (S I), of S - 1 degrees of freedom;  B = (MS_items - MS_rest) / (S I), of I - 1
    p(x) = E[ P(|t_{I-1}| > x / sqrt(A* + B)) ],  A* = A (S - 1) / chi2_{S-1}  (Behrens and Fisher)

MS: mean squares of a two-way analysis of variance. p(x): the p-value of a mean x. The test is exact
if A or B dominates, and conservative in between. If items are in groups, groups take the place of
items (`group_values`), and I is their effective number.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.optimize.elementwise import find_root
from scipy.special import fdtri, stdtr, stdtrit

from triptych.run.items import effective_number, group_values
from triptych.run.parsing import Estimate
from triptych.study.formatting import ALPHA as ALPHA

REACH = 6.0  # multiple of the others' span from which on a label is outlying
LEAST = 1.1  # lowest effective number of groups; a t of fewer degrees of freedom overflows


@dataclass(frozen=True)
class MeanError:
    """The variance of a mean: the sum of the parts over seeds and over items.

    `seed_variance` has `df` degrees of freedom, `item_variance` has `n_items` - 1. Both may be
    arrays, for elementwise results. If items are in groups, `n_items` is the effective number of
    groups.
    """

    seed_variance: Any
    df: int
    item_variance: Any = 0.0
    n_items: float = 0

    def p(self, distance: Any) -> Any:
        """Return the two-sided p of a mean at this distance from the null hypothesis."""
        distance, seeds, items = np.broadcast_arrays(
            np.abs(distance), self.seed_variance, self.item_variance
        )
        if not np.any(items):
            with np.errstate(divide="ignore", invalid="ignore"):
                return 2 * stdtr(self.df, -distance / np.sqrt(seeds))
        quantiles, weights = chi2_grid(self.df)
        b = items[..., None]
        # The lower limit avoids a division by zero if seeds change nothing.
        a = np.maximum(seeds[..., None], 1e-30 * b) / quantiles
        p = 2 * stdtr(self.n_items - 1, -distance[..., None] / np.sqrt(a + b))
        return (weights * p).sum(-1) / weights.sum()

    def critical(self, alpha: float) -> Any:
        """Return the distance of two-sided p `alpha`: half the width of a 1 - `alpha` interval."""
        seed_variance = np.asarray(self.seed_variance, float)
        item_variance = np.asarray(self.item_variance, float)
        seeds, items = np.broadcast_arrays(seed_variance, item_variance)
        if not np.any(items):
            return stdtrit(self.df, 1 - alpha / 2) * np.sqrt(seeds)

        def excess(x: np.ndarray, seeds: np.ndarray, items: np.ndarray) -> np.ndarray:
            return np.log(MeanError(seeds, self.df, items, self.n_items).p(x)) - np.log(alpha)

        high = 2 * np.sqrt(seeds + items)
        while np.any((above := excess(high, seeds, items)) > 0):
            high = np.where(above > 0, 2 * high, high)
        return find_root(excess, (np.zeros(seeds.shape), high), args=(seeds, items)).x


@dataclass(frozen=True)
class ItemDifferences:
    """The difference of two settings at each test item, (n,) by seed, and the items' groups, (n,).

    `groups` is None if the items are independent.
    """

    by_seed: Mapping[int | None, np.ndarray]
    groups: np.ndarray | None = None


def crossed_mean_error(differences: np.ndarray, groups: np.ndarray | None = None) -> MeanError:
    """Return the error of the mean of differences (..., seeds, items) over at least two seeds.

    With one item it is the error over seeds alone. ``groups``: the items' groups, (items,).
    """
    if groups is not None:
        by_group = crossed_mean_error(group_values(differences, groups))
        return replace(by_group, n_items=max(effective_number(groups), LEAST))
    s, i = differences.shape[-2:]
    if i == 1:
        return MeanError(differences[..., 0].var(-1, ddof=1) / s, s - 1)
    seeds, items, rest = mean_squares(differences)
    return MeanError(seeds / (s * i), s - 1, np.maximum(items - rest, 0) / (s * i), i)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute MS_seeds, MS_items, MS_rest of (..., seeds, items): two-way analysis of variance."""
    s, i = differences.shape[-2:]
    mean = differences.mean((-2, -1), keepdims=True)
    a = differences.mean(-1, keepdims=True) - mean
    b = differences.mean(-2, keepdims=True) - mean
    total = ((differences - mean) ** 2).sum((-2, -1))
    sum_a = i * (a**2).sum((-2, -1))
    sum_b = s * (b**2).sum((-2, -1))
    rest = np.maximum(total - sum_a - sum_b, 0) / ((s - 1) * (i - 1))
    return sum_a / (s - 1), sum_b / (i - 1), rest


@lru_cache(maxsize=64)
def chi2_grid(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights for expectations over chi2_df / df.

    They are the trapezoidal rule in u = log(chi2_df / df); the weights are not normalised.

    The density, exp(df (u - e^u) / 2) up to a constant, vanishes at both ends with all derivatives,
    so the rule converges exponentially: for up to 30 seeds, a p of 1e-20 is right to one part in
    1e6. The first node has a probability of about 1e-32.
    """
    u = np.linspace(2 / df * np.log(1e-32), np.log(4 + 160 / df), 256)
    return np.exp(u), np.exp(df / 2 * (u - np.exp(u) + 1))


UNKNOWN = MeanError(math.nan, 1)


@dataclass(frozen=True)
class Paired:
    """The mean difference (other - reference) over the `n` seeds that both settings have.

    `error`, `p` and intervals are NaN for fewer than two seeds, or if all seeds have exactly the
    same difference: then the variation over seeds is unknown.
    """

    mean: float
    n: int
    error: MeanError = UNKNOWN

    @property
    def n_items(self) -> int:
        """Number of paired items, or effective number of groups; 0 if only seeds are paired."""
        return round(self.error.n_items)

    @property
    def is_identical(self) -> bool:
        """Whether both settings have exactly the same values for two or more seeds."""
        return self.n > 1 and self.mean == 0 and math.isnan(self.p)

    @cached_property
    def p(self) -> float:
        """The two-sided p of "there is no difference", uncorrected."""
        return float(self.error.p(self.mean))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the ends of the interval of level 1 - `alpha`."""
        half = float(self.error.critical(alpha))
        return self.mean - half, self.mean + half

    def expected_half_width(self, seeds: int, alpha: float) -> float:
        """Return the median half-width of the 1 - `alpha` interval at a larger number of seeds.

        The sum of squares over the present n seeds stays in that over all S seeds; the share of the
        new ones relative to it is (S - n) / (n - 1) F, F of (S - n, n - 1) degrees of freedom. The
        variance through items does not fall.
        """
        new = (seeds - self.n) / (seeds - 1)
        growth = 1 - new + new * fdtri(seeds - self.n, self.n - 1, 0.5)
        variance = self.error.seed_variance * growth * self.n / seeds
        return float(replace(self.error, seed_variance=variance, df=seeds - 1).critical(alpha))

    def one_sided_p(self, distance: float) -> float:
        """Return the one-sided p of "the true distance is at most 0" for a measured one."""
        half = float(self.error.p(distance)) / 2
        return half if distance > 0 else 1 - half


def spread(values: Collection[float]) -> Estimate:
    """Compute the mean over seeds and its standard error sd / sqrt(n); NaN for under two values."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, n)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, math.sqrt(variance / n), n)


def paired(
    reference: Mapping[int | None, float],
    other: Mapping[int | None, float],
    items: ItemDifferences | None = None,
) -> Paired:
    """Return the difference `other - reference`, paired over common seeds, with its error.

    With `items` for every common seed, interval and p cover the choice of seeds and of test items
    (`crossed_mean_error`); without, they are those of the paired t-test over seeds.
    """
    common = [seed for seed in reference if seed in other]
    differences = [other[seed] - reference[seed] for seed in common]
    whole = spread(differences)
    scale = max((abs(side[seed]) for side in (reference, other) for seed in common), default=0.0)
    # If the differences are equal up to rounding, the variation over seeds is unknown.
    if not whole.stderr > 1e-12 * scale:
        return Paired(whole.mean, whole.n)
    if items is not None and all(seed in items.by_seed for seed in common):
        by_item = np.stack([items.by_seed[seed] for seed in common])
        return Paired(whole.mean, whole.n, crossed_mean_error(by_item, items.groups))
    return Paired(whole.mean, whole.n, MeanError(whole.stderr**2, whole.n - 1))


def outlying_labels(values: Mapping[str, Collection[float]], sign: int = 1) -> set[str]:
    """Return the labels of values so bad that they would squeeze all others on an axis.

    They lie more than `REACH` times the span of the other values from the best one. The others are
    at least two labels, and at least half of all. `sign`: 1 if lower values are better, else -1.
    """
    ordered = []
    for label, figures in values.items():
        if figures:
            signed = [sign * figure for figure in figures]
            ordered.append((min(signed), max(signed), label))
    ordered.sort()
    for k in range(max(2, (len(ordered) + 1) // 2), len(ordered)):
        low = ordered[0][0]
        span = max(high for _, high, _ in ordered[:k]) - low
        if ordered[k][0] - low > REACH * span > 0:
            return {label for *_, label in ordered[k:]}
    return set()


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return p-values adjusted by Holm's step-down method; NaN stays NaN, and counts as no test.

    With `weights` w (Holm 1979, section 4): p_(i) / w_(i) in ascending order, times the sum of the
    weights not yet used up. Equal weights give the usual m p_(1), (m - 1) p_(2), ...
    """
    w = [1.0] * len(p_values) if weights is None else weights
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    order = sorted(known, key=lambda i: p_values[i] / w[i])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    left = math.fsum(w[i] for i in known)
    for i in order:
        largest = max(largest, min(1.0, left * p_values[i] / w[i]))
        adjusted[i] = largest
        left -= w[i]
    return adjusted
