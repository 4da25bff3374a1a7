"""What may be said of a few seeds: means, paired differences, Student-t intervals, Holm's correction.

Two settings trained from the same seed share initial weights, batches and noise, so their difference
varies far less than either figure: pairs, not pooled variances, decide a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.special import stdtr, stdtrit  # Student's t without the second that importing scipy.stats takes

LEVEL = 0.95
Seed = TypeVar("Seed", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, standard error sd / sqrt(n) and 95% Student-t interval (NaN where n < 2)."""

    mean: float
    stderr: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean of (other - reference) over the seeds both have; positive: the other is worse.

    `low`, `high`, `p` are NaN where they cannot be known: fewer than two pairs, or pairs that all
    differ by exactly the same amount, which says that the seed changed nothing, not that we are certain.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether the 95% interval excludes zero: the only ground on which a ranking is claimed."""
        return self.low > 0 or self.high < 0

    def reversed(self) -> Paired:
        """The same comparison seen from the other side."""
        return Paired(-self.mean, -self.high, -self.low, self.p, self.n)


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard error and interval of values, one per seed. NaN throughout for none."""
    n = len(values)
    if n == 0:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, math.nan, math.nan, math.nan, 1)
    stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * stderr
    return Spread(mean, stderr, mean - half, mean + half, n)


def paired(reference: Mapping[Seed, float], other: Mapping[Seed, float]) -> Paired:
    """`other - reference` over their common seeds, with a two-sided paired t-test."""
    differences = [other[seed] - reference[seed] for seed in reference if seed in other]
    whole = spread(differences)
    scale = max((abs(reference[seed]) for seed in reference if seed in other), default=0.0)
    # differences equal to rounding carry no information on how much a seed matters
    if not whole.stderr > 1e-12 * scale:
        return Paired(whole.mean, math.nan, math.nan, math.nan, whole.n)
    p = 2 * float(stdtr(whole.n - 1, -abs(whole.mean) / whole.stderr))
    return Paired(whole.mean, whole.low, whole.high, p, whole.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; NaN stays NaN and does not count as a test."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
