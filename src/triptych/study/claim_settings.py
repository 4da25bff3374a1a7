"""Read the settings that a published claim compares: their runs, labels and figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triptych.config.keys import describe_null
from triptych.run.parsing import Estimate, SampleMeasures
from triptych.run.read import Run
from triptych.study.formatting import plus_minus
from triptych.study.groups import in_seed_order
from triptych.study.papers.claim import OF_THE_BOUND, Axes, Claim, MetricPoint
from triptych.study.statistics import spread

# {status of a run that ended: rank}. If a seed has several runs, one with the highest rank counts.
ENDED = {"diverged": 1, "finished": 2}
# {metric of a claim: its key in a run's record}. Terms of the bound have a unit, as "bpd_prior".
KEYS = {
    **{name: f"{{unit}}_{name}" for name in OF_THE_BOUND},
    **dict.fromkeys(("bound", "train_bound", "val_bound"), "{unit}"),
    **{name: name for name in ("gap", "entropy")},
}
UNKNOWN = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Setting:
    """The runs of one setting of a claim, at most one a seed, and their finite figures by seed.

    ``ended``, ``diverged``: the numbers of runs that ended, and of those that diverged.
    """

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
            text = plus_minus(spread(self.figures.values()))
        if self.diverged:
            text += f", {self.diverged} diverged"
        return text


def read_settings(claim: Claim, axes: Axes, runs: Sequence[Run]) -> dict[MetricPoint, Setting]:
    """Return {point: its runs and figures} for each setting of a claim, in the sweep's order."""
    place = {(key, value): i for key, values in axes.items() for i, value in enumerate(values)}
    points = sorted(claim.points, key=lambda point: [place.get(pair, 0) for pair in point.setting])
    return {point: _read_setting(point, point_label(point, claim), axes, runs) for point in points}


def _read_setting(point: MetricPoint, label: str, axes: Axes, runs: Sequence[Run]) -> Setting:
    """Collect one setting's runs and their figures."""
    matches = runs_of(point, axes, runs)
    figures = {run.seed: figure(point, run) for run in matches}
    finite = {seed: x for seed, x in figures.items() if math.isfinite(x)}
    ends = [run.status for run in matches if run.status in ENDED]
    return Setting(label, point.metric, matches, finite, len(ends), ends.count("diverged"))


def point_label(point: MetricPoint, claim: Claim) -> str:
    """Label a setting by the values, and the metric, in which the settings of its claim differ."""
    shared = set.intersection(*(set(other.setting) for other in claim.points))
    texts = [describe_null(*pair) for pair in point.setting if pair not in shared]
    if not texts or len({other.metric for other in claim.points}) > 1:
        texts.append(point.metric)
    return " / ".join(texts)


def runs_of(point: MetricPoint, axes: Axes, runs: Sequence[Run]) -> list[Run]:
    """Return one run of a setting for each seed: the newest finished, else diverged, else other."""
    measured_keys = {run.measured.key for run in runs if run.measured is not None}
    setting = {key: value for key, value in point.setting if key not in measured_keys}
    planned = axes.get("seed", ())
    by_seed: dict[int | None, Run] = {}
    for run in sorted(runs, key=lambda run: (ENDED.get(run.status, 0), run.age)):
        values = {**run.config, **run.choices, **run.overrides}
        is_planned = not planned or str(run.seed) in planned
        if is_planned and setting.items() <= values.items():
            by_seed[run.seed] = run
    return list(in_seed_order(by_seed).values())


def figure(point: MetricPoint, run: Run) -> float:
    """Return a run's value of a point's metric; NaN if it has none."""
    metric = point.metric
    if metric == "estimator_variance":
        return run.variance
    if run.measured is not None and any(metric in row for row in run.measured.rows):
        return _sample_figure(point, run.measured)
    splits = {"train_bound": run.train, "val_bound": run.val}
    key = KEYS.get(metric, metric).replace("{unit}", str(run.measure))
    return splits.get(metric, run.test).get(key, UNKNOWN).mean


def _sample_figure(point: MetricPoint, measured: SampleMeasures) -> float:
    """Return a measure of samples at the setting's value of the key that ``measures.over`` varies.

    NaN unless exactly one figure has this value.
    """
    places = zip(measured.values, measured.at(point.metric), strict=True)
    value = dict(point.setting).get(measured.key)
    figures = [figure for place, figure in places if value in (None, f"{place:g}")]
    if len(figures) != 1:
        return math.nan
    return figures[0]
