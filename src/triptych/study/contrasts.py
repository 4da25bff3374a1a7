"""Measure a claim's contrasts in a sweep, and test whether each lies in its claimed range."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import bdtr, bdtrc

from triptych.study.cells import bound_by_item
from triptych.study.claim_settings import Setting
from triptych.study.formatting import count_noun, four_digits, with_interval
from triptych.study.groups import repeated_results
from triptych.study.papers.claim import OF_THE_BOUND, Contrast, MetricPoint
from triptych.study.statistics import ALPHA, Paired, paired, spread

Settings = Mapping[MetricPoint, Setting]


@dataclass(frozen=True)
class ContrastResult:
    """The measured value of a contrast, and p-values of its claimed range.

    ``p_not_within``: p of "it is outside its range", small if reproduced. ``p_within``: p of "it is
    inside". ``trouble``: why it cannot be measured (both p are then 1), "" if it can. ``means``:
    the mean of each setting. ``wide``: why a tie's margin is too wide to count as reproduced.
    ``tail``: the error probability beyond each end of the interval.
    """

    contrast: Contrast
    pair: Paired
    p_not_within: float = 1.0
    p_within: float = 1.0
    trouble: str = ""
    means: tuple[float, ...] = ()
    wide: str = ""
    tail: float = ALPHA / 2

    def refuse_wide(self, max_margin: float, limit_name: str) -> "ContrastResult":
        """Return the result; a tie with a margin above ``max_margin`` can no longer be reproduced.

        ``limit_name``: the limit in words, for the reason.
        """
        if self.trouble or not self.contrast.is_tie or self.contrast.high <= max_margin:
            return self
        return replace(
            self, p_not_within=1.0, wide=f"the margin {self.accepted} is wider than {limit_name}"
        )

    @property
    def ends(self) -> tuple[float, float, float]:
        """The mean difference and the ends of its interval, each one-sided at level ``tail``."""
        return self.pair.mean, *self.pair.interval(2 * self.tail)

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """First setting / second: (mean, low, high); None for one setting or without a ratio.

        There is no ratio if a figure, or the end of the interval, is not above 0.
        """
        if self.trouble or not self.contrast.is_pair:
            return None
        if self.contrast.ratio:
            mean, low, high = map(saturating_exp, self.ends)
            return mean, low, min(high, 1e9)  # limited, as JSON has no infinity
        mean, low, high = self.ends
        base = self.means[1]
        if base <= 0 or base + min(mean, low) <= 0:
            return None
        return (base + mean) / base, (base + low) / base, (base + high) / base

    def size(self, ratio: bool) -> float:
        """Return the size of the difference of both settings, or with ``ratio`` of their log ratio.

        It is infinite if it is unknown.
        """
        if ratio == self.contrast.ratio:
            return abs(self.pair.mean)
        if not ratio:
            return abs(self.means[0] - self.means[1])
        if self.ratio is None:
            return math.inf
        return abs(math.log(self.ratio[0]))

    @property
    def text(self) -> str:
        """The measured difference or ratio with its interval: "−0.120 [−0.140, −0.100]"."""
        if self.trouble:
            return "–"
        if self.contrast.diverges:
            return f"{self.pair.mean:.0%} of {count_noun(self.pair.n, 'seed')}"
        if self.contrast.ratio:
            mean, low, high = map(saturating_exp, self.ends)
            return with_interval(mean, low, high)
        return with_interval(*self.ends, sign=self.contrast.is_pair)

    @property
    def accepted(self) -> str:
        """The range of values that the claim states, as "above 0.1" or "from 0.9 to 1.1"."""
        low = self.contrast.low
        high = self.contrast.high
        if self.contrast.diverges:
            return "above 50%"
        if self.contrast.ratio:
            low = math.exp(low)
            high = math.exp(high)
        if math.isinf(high):
            return f"above {four_digits(low)}"
        return f"from {four_digits(low)} to {four_digits(high)}"


def saturating_exp(x: float) -> float:
    """Return e^x, or 0 or infinity beyond any sensible ratio, as in the interval of two seeds."""
    if x <= -20:
        return 0.0
    if x >= 20:
        return math.inf
    return math.exp(x)


def range_tests(pair: Paired, low: float, high: float) -> tuple[float, float]:
    """Return p of "the mean is not within [low, high]", and of "it is within".

    Each finite end has a one-sided test.
    """
    distances = (pair.mean - low, high - pair.mean)
    inward = [distance for distance in distances if math.isfinite(distance)]
    outside = max(pair.one_sided_p(distance) for distance in inward)
    inside = min(pair.one_sided_p(-distance) for distance in inward)
    return outside, min(1.0, len(inward) * inside)


class Unmeasurable(Exception):
    """The reason why a contrast cannot be measured."""


def measure_contrast(contrast: Contrast, settings: Settings, seeds: int) -> ContrastResult:
    """Measure a contrast over ``seeds`` seeds, from the runs of each setting."""
    try:
        _check_ended(contrast, settings, seeds)
        if contrast.diverges:
            return _test_divergence(contrast, settings)
        compared = [settings[point] for point in contrast.compared]
        _check_comparable(contrast, compared)
        pair = _pair_by_seed(contrast, compared)
    except Unmeasurable as reason:
        return ContrastResult(contrast, Paired(math.nan, 0), trouble=str(reason))
    means = tuple(spread(setting.figures.values()).mean for setting in compared)
    outside, inside = range_tests(pair, contrast.low, contrast.high)
    result = ContrastResult(contrast, pair, outside, inside, means=means)
    if contrast.ratio or contrast.first.metric in OF_THE_BOUND:
        return result  # a bound may be near 0, so half of it is no reasonable margin
    return result.refuse_wide(min(map(abs, means)) / 2, "half of the smaller figure")


def _check_ended(contrast: Contrast, settings: Settings, seeds: int) -> None:
    """Raise Unmeasurable if a setting has fewer runs that ended than the sweep has seeds."""
    for point in (*contrast.compared, *contrast.others):
        setting = settings[point]
        if setting.ended < seeds:
            raise Unmeasurable(
                f"only {setting.ended} of {count_noun(seeds, 'run')} of {setting.label} finished"
            )


def _test_divergence(contrast: Contrast, settings: Settings) -> ContrastResult:
    """Test, by a sign test, whether most seeds diverge or end far above all other settings."""
    first = settings[contrast.first]
    others = [settings[point].figures for point in contrast.others]
    n = first.ended
    lost = first.diverged
    for seed, value in first.figures.items():
        known = [figures[seed] for figures in others if seed in figures]
        lost += value > contrast.beyond * max(known, default=math.inf)
    # Probabilities of at least and at most ``lost`` losses, if each seed is lost with p = 1/2.
    many = float(bdtrc(lost - 1, n, 0.5))
    few = float(bdtr(lost, n, 0.5))
    return ContrastResult(contrast, Paired(lost / n, n), many, few)


def _check_comparable(contrast: Contrast, compared: Sequence[Setting]) -> None:
    """Raise Unmeasurable unless each run has a finite figure of its own, all on the same data."""
    fingerprints = set[str]()
    for setting in compared:
        repeats = repeated_results({run.seed: run for run in setting.runs if run.test})
        if repeats:
            seed, first = next(iter(repeats.items()))
            raise Unmeasurable(
                f"{setting.label}: seeds {first} and {seed} have the same figures to the last digit"
            )
        if setting.diverged:
            raise Unmeasurable(
                f"{setting.label} diverged with {setting.diverged} of "
                f"{count_noun(setting.ended, 'seed')}"
            )
        if len(setting.figures) < len(setting.runs):
            raise Unmeasurable(f"{setting.label} has no finite {setting.metric}")
        fingerprints |= {run.fingerprint for run in setting.runs if run.fingerprint}
    if len(fingerprints) > 1:
        raise Unmeasurable(f"{contrast.name}: the runs have different data")


def _pair_by_seed(contrast: Contrast, compared: Sequence[Setting]) -> Paired:
    """Pair figures by seed, bounds also by item; raise Unmeasurable without a ratio or error."""
    figures = [dict(setting.figures) for setting in compared]
    items = None
    if contrast.ratio:
        figures = [_logarithms(contrast, values) for values in figures]
    elif {point.metric for point in contrast.compared} == {"bound"}:
        items = bound_by_item(*(setting.runs for setting in compared))
    first = figures[0]
    second = dict.fromkeys(figures[0], 0.0)
    if contrast.is_pair:
        second = figures[1]
    pair = paired(second, first, items)
    if math.isnan(pair.p):
        raise Unmeasurable(
            f"{contrast.name}: one seed, or equal values of all seeds, so the error is unknown"
        )
    return pair


def _logarithms(contrast: Contrast, figures: Mapping[int | None, float]) -> dict[int | None, float]:
    """Return the logarithm of each seed's figure; raise Unmeasurable unless all are positive."""
    if any(x <= 0 for x in figures.values()):
        raise Unmeasurable(f"{contrast.name}: a ratio needs values above 0")
    return {seed: math.log(x) for seed, x in figures.items()}
