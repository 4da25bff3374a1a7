"""Measure a claim's contrasts in a sweep, with p-values of their ranges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import bdtr, bdtrc

from triptych.config.keys import name_null
from triptych.run.read import Run
from triptych.study.cells import bound_by_item
from triptych.study.formatting import plus_minus, quantity, with_interval
from triptych.study.groups import copies, same_figures
from triptych.study.papers.claim import OF_THE_BOUND, Axes, Claim, Contrast, MetricPoint
from triptych.study.statistics import ALPHA, Paired, paired, spread

Runs = Mapping[MetricPoint, list[Run]]
Values = dict[int | None, float]


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
        if self.trouble or len(self.means) < 2:
            return None
        mean, low, high = self.ends
        if self.contrast.ratio:
            return exp(mean), exp(low), min(exp(high), 1e9)  # JSON has no infinity
        base = self.means[1]
        ends = tuple((base + end) / base for end in (mean, low, high)) if base > 0 else ()
        return (ends[0], ends[1], ends[2]) if ends and min(ends) > 0 else None

    def size(self, ratio: bool) -> float:
        """Return how far apart both settings are, as a difference or a log ratio; infinite if unknown."""
        if ratio == self.contrast.ratio:
            return abs(self.pair.mean)
        if not ratio:
            return abs(self.means[0] - self.means[1])
        return abs(math.log(self.ratio[0])) if self.ratio else math.inf

    @property
    def text(self) -> str:
        """ "−0.120 [−0.140, −0.100]"; a ratio as such."""
        if self.trouble:
            return "–"
        if self.contrast.diverges:
            return f"{self.pair.mean:.0%} of {quantity(self.pair.n, 'seed')}"
        mean, low, high = map(exp, self.ends) if self.contrast.ratio else self.ends
        return with_interval(mean, low, high, self.contrast.second is not None and not self.contrast.ratio)

    @property
    def accepted(self) -> str:
        """ "above 0.1", "from 0.9 to 1.1"."""
        if self.contrast.diverges:
            return "above 50%"
        ends = self.contrast.low, self.contrast.high
        reached = map(math.exp, ends) if self.contrast.ratio else ends
        low, high = (f"{end:.4g}".replace("-", "−") for end in reached)
        return f"above {low}" if math.isinf(ends[1]) else f"from {low} to {high}"


def exp(x: float) -> float:
    """Return e^x; 0 or infinity beyond any ratio that says something, as two seeds' interval may be."""
    if abs(x) >= 20:
        return math.inf if x > 0 else 0.0
    return math.exp(x)


def range_tests(pair: Paired, low: float, high: float) -> tuple[float, float]:
    """Return p of "not within [low, high]" and of "within": one-sided tests at each finite end."""
    inward = [distance for distance in (pair.mean - low, high - pair.mean) if math.isfinite(distance)]
    outside = max(pair.not_beyond(distance) for distance in inward)
    inside = min(pair.not_beyond(-distance) for distance in inward)
    return outside, min(1.0, len(inward) * inside)


def runs_of(point: MetricPoint, axes: Axes, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a setting, by seed; of those of one seed the newest that finished, else ended."""
    over = {run.measured.key for run in runs if run.measured is not None}
    wanted = [(key, value) for key, value in point.setting if key not in over]
    typed = [(run, {**run.config, **run.choices, **run.overrides}) for run in runs]
    matches = [run for run, values in typed if all(values.get(key, "") == value for key, value in wanted)]
    done = ["diverged", "finished"]
    ordered = sorted(matches, key=lambda r: (done.index(r.status) if r.status in done else -1, r.age))
    planned = set(axes.get("seed", ()))
    newest = {run.seed: run for run in ordered if not planned or str(run.seed) in planned}
    return [newest[seed] for seed in sorted(newest, key=lambda s: (s is None, s or 0))]


def measure_contrast(contrast: Contrast, axes: Axes, of: Runs, seeds: int) -> ContrastResult:
    """Return the contrast over ``seeds`` seeds, from the runs of each setting."""

    def cannot(why: str) -> ContrastResult:
        return ContrastResult(contrast, Paired(math.nan, 0), trouble=why)

    points = [point for point in (contrast.first, contrast.second) if point]
    ended_of = {
        point: [run for run in of[point] if run.status in ("finished", "diverged")]
        for point in (*points, *contrast.others)
    }
    for point, ended in ended_of.items():
        if len(ended) < seeds:
            return cannot(f"{len(ended)} of {quantity(seeds, 'run')} of {point_label(point, axes)} ended")
    for point in points:
        ended = ended_of[point]
        diverged = sum(run.status == "diverged" for run in ended)
        if contrast.diverges:
            n = len(ended)
            diverged += sum(_is_beyond(run, contrast, of) for run in ended if run.status != "diverged")
            # the chance of as many, or as few, under a probability of one half
            many = float(bdtrc(diverged - 1, n, 0.5)) if diverged else 1.0
            return ContrastResult(contrast, Paired(diverged / n, n), many, float(bdtr(diverged, n, 0.5)))
        if again := copies({run.seed: run for run in of[point] if run.test}):
            return cannot(same_figures(point_label(point, axes), again))
        if diverged:
            problem = f"diverged with {diverged} of {quantity(len(ended), 'seed')}"
            return cannot(f"{point_label(point, axes)} {problem}")
    if len({run.fingerprint for point in points for run in of[point] if run.fingerprint}) > 1:
        return cannot(f"{contrast.name}: not on the same data")
    values = [_values(point, of[point]) for point in points]
    for point, figures in zip(points, values, strict=True):
        if len(figures) < len(of[point]):
            return cannot(f"{point_label(point, axes)} has no finite {point.metric}")
    means = tuple(spread(list(figures.values())).mean for figures in values)
    if contrast.ratio:
        if any(value <= 0 for figures in values for value in figures.values()):
            return cannot(f"{contrast.name}: a figure is not above 0")
        values = [{seed: math.log(value) for seed, value in figures.items()} for figures in values]
    by_item = not contrast.ratio and all(point.metric == "bound" for point in points)
    items = bound_by_item(*(of[point] for point in points)) if by_item else None
    if contrast.second is None:
        pair = paired(dict.fromkeys(values[0], 0.0), values[0], items)
    else:
        pair = paired(values[1], values[0], items)
    if pair.error is None:
        why = "one seed" if pair.n < 2 else "every seed gave the same figure"
        return ContrastResult(contrast, pair, trouble=f"{contrast.name}: {why}, no error is known")
    measured = ContrastResult(contrast, pair, *range_tests(pair, contrast.low, contrast.high), means=means)
    # a bound may be near 0, as densities have no scale
    smaller = math.inf if contrast.ratio or points[0].metric in OF_THE_BOUND else min(map(abs, means))
    return measured.refuse_wide(smaller / 2, "half of the smaller figure")


def _is_beyond(run: Run, contrast: Contrast, of: Runs) -> bool:
    """Return whether a run's figure is over ``beyond`` times that of every other setting with its seed."""
    rest = [_values(point, of[point]).get(run.seed) for point in contrast.others]
    known = [value for value in rest if value is not None]
    return bool(known) and _figure(contrast.first, run) > contrast.beyond * max(known)


def _values(point: MetricPoint, runs: Sequence[Run]) -> Values:
    figures = {run.seed: _figure(point, run) for run in runs}
    return {seed: value for seed, value in figures.items() if math.isfinite(value)}


def _figure(point: MetricPoint, run: Run) -> float:
    unit, name = run.measure or "", point.metric
    if name == "estimator_variance":
        return run.variance
    if run.measured is not None and any(name in row for row in run.measured.rows):
        at = run.measured.at(name)
        wanted = dict(point.setting).get(run.measured.key)
        places = [i for i, v in enumerate(run.measured.values) if wanted is None or f"{v:g}" == wanted]
        return at[places[0]] if len(places) == 1 else math.nan
    if name in ("train_bound", "val_bound"):
        figures, key = (run.train if name == "train_bound" else run.val), unit
    else:
        plain = name not in OF_THE_BOUND or name in ("gap", "entropy")
        figures, key = run.test, name if plain else unit if name == "bound" else f"{unit}_{name}"
    return figures[key].mean if key in figures else math.nan


def setting_figures(claim: Claim, axes: Axes, of: Runs) -> list[tuple[str, str]]:
    """Format each setting's mean and standard error over seeds."""
    place = {(key, value): i for key, values in axes.items() for i, value in enumerate(values)}
    rows = []
    for point in sorted(claim.points, key=lambda p: [place.get(one, 0) for one in p.setting]):
        values = list(_values(point, of[point]).values())
        diverged = sum(run.status == "diverged" for run in of[point])
        text = plus_minus(spread(values)) if values else "–"
        rows.append((point_label(point, axes, claim), text + (f", {diverged} diverged" if diverged else "")))
    return rows


def point_label(point: MetricPoint, axes: Axes, claim: Claim | None = None) -> str:
    """Return a setting by the values that tell it from the others of the sweep, or of the claim."""
    if claim is None:
        several = {key for key, _ in point.setting if len(axes.get(key, ())) > 1}
    else:
        several = {k for k, _ in point.setting if len({dict(p.setting).get(k) for p in claim.points}) > 1}
    texts = [name_null(key, value) for key, value in point.setting if key in several]
    metrics = {p.metric for p in claim.points} if claim else set()
    return " / ".join([*texts, *([point.metric] if len(metrics) > 1 or not texts else [])])
