"""Measure a claim's contrasts in a sweep, with p-values of their ranges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import bdtr, bdtrc

from triptych.config.keys import name_null
from triptych.run.parsing import SampleMeasures
from triptych.run.read import Run
from triptych.study.cells import bound_by_item
from triptych.study.formatting import plus_minus, quantity, with_interval
from triptych.study.groups import copies
from triptych.study.papers.claim import METRIC, OF_THE_BOUND, Axes, Claim, Contrast, MetricPoint
from triptych.study.statistics import ALPHA, Paired, paired, spread

Settings = Mapping[MetricPoint, "Setting"]
ENDED = ("diverged", "finished")
# what is recorded as "bpd_prior" or "nats_per_dim_prior"
BY_UNIT = {*OF_THE_BOUND} - {"bound", "gap", "entropy"}


@dataclass(frozen=True)
class ContrastResult:
    """A contrast as it was measured.

    ``p_not_within``: p of "outside of its range", small where reproduced; ``p_within``: of "inside".
    ``trouble``: why it cannot be measured, "" if it can; both are then 1. ``means``: of each setting.
    ``wide``: why a tie's margin cannot reproduce it. ``tail``: the chance beyond each end of the interval.
    """

    contrast: Contrast
    pair: Paired
    p_not_within: float = 1.0
    p_within: float = 1.0
    trouble: str = ""
    means: tuple[float, ...] = ()
    wide: str = ""
    tail: float = ALPHA / 2

    def refuse_wide(self, least: float, what: str) -> "ContrastResult":
        """Return the result of a tie, which no margin wider than ``least`` reproduces."""
        if self.trouble or not self.contrast.is_tie or self.contrast.high <= least:
            return self
        return replace(self, p_not_within=1.0, wide=f"the margin {self.accepted} is wider than {what}")

    @property
    def ends(self) -> tuple[float, float, float]:
        """Mean of the differences and the ends of its interval, at one-sided level ``tail``; NaN unknown."""
        return self.pair.mean, *self.pair.interval(2 * self.tail)

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """First over second: (mean, low, high); None for one figure, or figures not above 0."""
        if self.trouble or not self.contrast.is_pair:
            return None
        mean, low, high = self.ends
        if self.contrast.ratio:
            return exp(mean), exp(low), min(exp(high), 1e9)  # JSON has no infinity
        base = self.means[1]
        if base <= 0 or base + min(mean, low) <= 0:
            return None
        return (base + mean) / base, (base + low) / base, (base + high) / base

    def size(self, ratio: bool) -> float:
        """Return how far apart both settings are, as a difference or a log ratio; infinite if unknown."""
        if ratio == self.contrast.ratio:
            return abs(self.pair.mean)
        if not ratio:
            return abs(self.means[0] - self.means[1])
        if self.ratio is None:
            return math.inf
        return abs(math.log(self.ratio[0]))

    @property
    def text(self) -> str:
        """ "−0.120 [−0.140, −0.100]"; a ratio as such."""
        if self.trouble:
            return "–"
        if self.contrast.diverges:
            return f"{self.pair.mean:.0%} of {quantity(self.pair.n, 'seed')}"
        mean, low, high = self.ends
        if self.contrast.ratio:
            return with_interval(exp(mean), exp(low), exp(high))
        return with_interval(mean, low, high, sign=self.contrast.is_pair)

    @property
    def accepted(self) -> str:
        """ "above 0.1", "from 0.9 to 1.1"."""
        low, high = self.contrast.low, self.contrast.high
        if self.contrast.diverges:
            return "above 50%"
        if self.contrast.ratio:
            low, high = math.exp(low), math.exp(high)
        if math.isinf(high):
            return f"above {_four_digits(low)}"
        return f"from {_four_digits(low)} to {_four_digits(high)}"


def _four_digits(x: float) -> str:
    return f"{x:.4g}".replace("-", "−")


def exp(x: float) -> float:
    """Return e^x; 0 or infinity beyond any ratio that says something, as two seeds' interval may be."""
    if x <= -20:
        return 0.0
    if x >= 20:
        return math.inf
    return math.exp(x)


def range_tests(pair: Paired, low: float, high: float) -> tuple[float, float]:
    """Return p of "not within [low, high]" and of "within": one-sided tests at each finite end."""
    inward = [distance for distance in (pair.mean - low, high - pair.mean) if math.isfinite(distance)]
    outside = max(pair.not_beyond(distance) for distance in inward)
    inside = min(pair.not_beyond(-distance) for distance in inward)
    return outside, min(1.0, len(inward) * inside)


@dataclass(frozen=True)
class Setting:
    """The runs of one setting of a claim, at most one a seed, and their finite figures by seed."""

    label: str
    metric: str
    runs: Sequence[Run]
    figures: Mapping[int | None, float]
    ended: int
    diverged: int

    @property
    def text(self) -> str:
        """Mean and standard error over seeds: "1.902 ± 0.006, 1 diverged"."""
        text = "–"
        if self.figures:
            text = plus_minus(spread(list(self.figures.values())))
        if self.diverged:
            text += f", {self.diverged} diverged"
        return text


def read_settings(claim: Claim, axes: Axes, runs: Sequence[Run]) -> dict[MetricPoint, Setting]:
    """Return each setting of a claim, in the order of the sweep's values."""
    place = {(key, value): i for key, values in axes.items() for i, value in enumerate(values)}
    points = sorted(claim.points, key=lambda point: [place.get(setting, 0) for setting in point.setting])
    return {point: _read_setting(point, point_label(point, claim), axes, runs) for point in points}


def _read_setting(point: MetricPoint, label: str, axes: Axes, runs: Sequence[Run]) -> Setting:
    own = runs_of(point, axes, runs)
    figures = {run.seed: figure(point, run) for run in own}
    finite = {seed: x for seed, x in figures.items() if math.isfinite(x)}
    ends = [run.status for run in own if run.status in ENDED]
    return Setting(label, point.metric, own, finite, len(ends), ends.count("diverged"))


def point_label(point: MetricPoint, claim: Claim) -> str:
    """Return a setting by the values that tell it from the others of the claim, and by a metric that does."""
    values_of: dict[str, set[str]] = {METRIC: set()}
    for other in claim.points:
        values_of[METRIC].add(other.metric)
        for key, value in other.setting:
            values_of.setdefault(key, set()).add(value)
    texts = [name_null(key, value) for key, value in point.setting if len(values_of[key]) > 1]
    if not texts or len(values_of[METRIC]) > 1:
        texts.append(point.metric)
    return " / ".join(texts)


def runs_of(point: MetricPoint, axes: Axes, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a setting, by seed; of those of one seed the newest that finished, else ended."""
    measured_keys = {run.measured.key for run in runs if run.measured is not None}
    setting = {key: value for key, value in point.setting if key not in measured_keys}
    planned = axes.get("seed", ())
    by_seed: dict[int | None, Run] = {}
    for run in sorted(runs, key=_rank):
        values = {**run.config, **run.choices, **run.overrides}
        is_planned = not planned or str(run.seed) in planned
        if is_planned and all(values.get(key, "") == value for key, value in setting.items()):
            by_seed[run.seed] = run
    return sorted(by_seed.values(), key=lambda run: (run.seed is None, run.seed or 0))


def _rank(run: Run) -> tuple[int, object]:
    """Return a sort key under which finished runs come after diverged ones, and both after all others."""
    rank = -1
    if run.status in ENDED:
        rank = ENDED.index(run.status)
    return rank, run.age


class Unmeasurable(Exception):
    """The reason why a contrast cannot be measured."""


def measure_contrast(contrast: Contrast, settings: Settings, seeds: int) -> ContrastResult:
    """Return the contrast over ``seeds`` seeds, from the runs of each setting."""
    try:
        _check_ended(contrast, settings, seeds)
        if contrast.diverges:
            return _share_of_divergences(contrast, settings)
        compared = [settings[point] for point in contrast.compared]
        _check_comparable(contrast, compared)
        pair = _paired(contrast, compared)
    except Unmeasurable as reason:
        return ContrastResult(contrast, Paired(math.nan, 0), trouble=str(reason))
    means = tuple(spread(list(setting.figures.values())).mean for setting in compared)
    result = ContrastResult(contrast, pair, *range_tests(pair, contrast.low, contrast.high), means=means)
    if contrast.ratio or contrast.first.metric in OF_THE_BOUND:
        return result  # a bound may be near 0, as densities have no scale
    return result.refuse_wide(min(map(abs, means)) / 2, "half of the smaller figure")


def _check_ended(contrast: Contrast, settings: Settings, seeds: int) -> None:
    """Raise Unmeasurable if a setting has fewer runs that ended than the sweep has seeds."""
    for point in (*contrast.compared, *contrast.others):
        setting = settings[point]
        if setting.ended < seeds:
            raise Unmeasurable(f"{setting.ended} of {quantity(seeds, 'run')} of {setting.label} ended")


def _share_of_divergences(contrast: Contrast, settings: Settings) -> ContrastResult:
    """Test by sign whether most seeds diverge, or end with a figure far beyond all others'."""
    first, others = settings[contrast.first], [settings[point].figures for point in contrast.others]
    n, lost = first.ended, first.diverged
    for seed, value in first.figures.items():
        known = [figures[seed] for figures in others if seed in figures]
        lost += bool(known) and value > contrast.beyond * max(known)
    # the chance of as many, or as few, under a probability of one half
    many, few = 1.0, float(bdtr(lost, n, 0.5))
    if lost:
        many = float(bdtrc(lost - 1, n, 0.5))
    return ContrastResult(contrast, Paired(lost / n, n), many, few)


def _check_comparable(contrast: Contrast, compared: Sequence[Setting]) -> None:
    """Raise Unmeasurable unless each run has a finite figure of its own, all on the same data."""
    fingerprints = set[str]()
    for setting in compared:
        repeats = copies({run.seed: run for run in setting.runs if run.test})
        if repeats:
            seed, first = next(iter(repeats.items()))
            problem = f"seeds {first} and {seed} have the same figures to the last digit"
            raise Unmeasurable(f"{setting.label}: {problem}")
        if setting.diverged:
            seeds = quantity(setting.ended, "seed")
            raise Unmeasurable(f"{setting.label} diverged with {setting.diverged} of {seeds}")
        if len(setting.figures) < len(setting.runs):
            raise Unmeasurable(f"{setting.label} has no finite {setting.metric}")
        fingerprints |= {run.fingerprint for run in setting.runs if run.fingerprint}
    if len(fingerprints) > 1:
        raise Unmeasurable(f"{contrast.name}: not on the same data")


def _paired(contrast: Contrast, compared: Sequence[Setting]) -> Paired:
    """Pair the figures by seed, and bounds by item; Unmeasurable: no ratio, or no error is known."""
    figures, items = [dict(setting.figures) for setting in compared], None
    if contrast.ratio:
        figures = [_logarithms(contrast, values) for values in figures]
    elif {point.metric for point in contrast.compared} == {"bound"}:
        items = bound_by_item(*(setting.runs for setting in compared))
    first, second = figures[0], dict.fromkeys(figures[0], 0.0)
    if contrast.is_pair:
        second = figures[1]
    pair = paired(second, first, items)
    if pair.error is not None:
        return pair
    if pair.n < 2:
        raise Unmeasurable(f"{contrast.name}: one seed, no error is known")
    raise Unmeasurable(f"{contrast.name}: every seed gave the same figure, no error is known")


def _logarithms(contrast: Contrast, figures: Mapping[int | None, float]) -> dict[int | None, float]:
    if any(x <= 0 for x in figures.values()):
        raise Unmeasurable(f"{contrast.name}: a figure is not above 0")
    return {seed: math.log(x) for seed, x in figures.items()}


def figure(point: MetricPoint, run: Run) -> float:
    """Return a run's figure of a metric; NaN if it has none."""
    metric, unit = point.metric, run.measure or ""
    if metric == "estimator_variance":
        return run.variance
    if run.measured is not None and any(metric in row for row in run.measured.rows):
        return _sample_figure(point, run.measured)
    figures, key = run.test, metric
    if metric == "train_bound":
        figures, key = run.train, unit
    elif metric == "val_bound":
        figures, key = run.val, unit
    elif metric == "bound":
        key = unit
    elif metric in BY_UNIT:
        key = f"{unit}_{metric}"
    if key not in figures:
        return math.nan
    return figures[key].mean


def _sample_figure(point: MetricPoint, measured: SampleMeasures) -> float:
    """Return a measure of samples at the setting's value of the key that each run measures them over."""
    figures = measured.at(point.metric)
    value = dict(point.setting).get(measured.key)
    if value is not None:
        places = [f"{place:g}" for place in measured.values]
        figures = tuple(x for place, x in zip(places, figures, strict=True) if place == value)
    if len(figures) != 1:
        return math.nan
    return figures[0]
