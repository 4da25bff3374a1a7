"""What may be said of a few seeds and a few hundred items: means, paired differences, intervals, Holm.

Settings of one seed share initial weights, batches, noise and items: pairs, not pooled variances, decide.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from triptych.run.entries import Estimate
from triptych.study.crossed import Error, crossed

LEVEL = 0.95
REACH = 6.0


@dataclass(frozen=True)
class Paired:
    """Mean of (other - reference) over the `n` seeds both have; positive: the other is worse.

    `error` is None, `p` and intervals NaN, of fewer than two pairs, or of pairs that differ by exactly the
    same, which says that the seed changed nothing, not that we are certain.
    """

    mean: float
    n: int
    error: Error | None = None

    @property
    def n_items(self) -> int:
        """Over how many test items the difference is paired as well; 0: its interval covers seeds alone."""
        return self.error.n_items if self.error else 0

    @cached_property
    def p(self) -> float:
        """Two-sided p of no difference, uncorrected."""
        return float(self.error.p(self.mean)) if self.error else math.nan

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the ends of the interval of level 1 - `alpha`."""
        half = float(self.error.critical(alpha)) if self.error else math.nan
        return self.mean - half, self.mean + half

    def not_beyond(self, distance: float) -> float:
        """Return the one-sided p of a true distance of at most 0, given this one; NaN unknown."""
        if self.error is None:
            return math.nan
        half = float(self.error.p(distance)) / 2
        return half if distance > 0 else 1 - half


def spread(values: Sequence[float]) -> Estimate:
    """Compute mean and standard error sd / sqrt(n) of values, one per seed: NaN of less than two."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, n)
    return Estimate(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n), n)


def paired(
    reference: Mapping[int | None, float],
    other: Mapping[int | None, float],
    items: Mapping[int | None, np.ndarray] | None = None,
) -> Paired:
    """Pair `other - reference` over common seeds. `items`: the same difference by item, (n,) for each seed.

    With items for every common seed, interval and p cover both which seed and which items (`crossed`);
    without, they are the paired t-test's over seeds.
    """
    common = [seed for seed in reference if seed in other]
    differences = [other[seed] - reference[seed] for seed in common]
    whole = spread(differences)
    scale = max((abs(side[seed]) for side in (reference, other) for seed in common), default=0.0)
    # differences equal to rounding carry no information on how much a seed matters
    if not whole.stderr > 1e-12 * scale:
        return Paired(whole.mean, whole.n)
    if items is not None and all(seed in items for seed in common):
        return Paired(whole.mean, whole.n, crossed(np.stack([items[seed] for seed in common])))
    return Paired(whole.mean, whole.n, Error(whole.stderr**2, whole.n - 1))


def far(values: Mapping[str, Collection[float]], sign: int = 1) -> set[str]:
    """Return the labels whose values would squeeze all others on a linear axis; `sign`: 1 where high is bad.

    They begin `REACH` times beyond the span of the others, which are two or more, and half or more of all.
    """
    known = ((label, [sign * value for value in several]) for label, several in values.items() if several)
    ordered = sorted((min(several), max(several), label) for label, several in known)
    for k in range(max(2, (len(ordered) + 1) // 2), len(ordered)):
        low, span = ordered[0][0], max(high for _, high, _ in ordered[:k]) - ordered[0][0]
        if ordered[k][0] - low > REACH * span > 0:
            return {label for *_, label in ordered[k:]}
    return set()


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Adjust p-values by Holm's step-down method, order unchanged; NaN stays NaN, and counts as no test.

    With `weights` w (Holm 1979, section 4): p_(i) / w_(i) in ascending order, times the sum of the weights
    not yet used up. Equal weights give the usual m p_(1), (m - 1) p_(2), ...
    """
    w = [1.0] * len(p_values) if weights is None else weights
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    order = sorted(known, key=lambda i: p_values[i] / w[i])
    adjusted = [math.nan] * len(p_values)
    largest, left = 0.0, math.fsum(w[i] for i in known)
    for i in order:
        largest = max(largest, min(1.0, left * p_values[i] / w[i]))
        adjusted[i] = largest
        left -= w[i]
    return adjusted
