"""What a sweep says of a paper's claims: reproduced, contradicted, or cannot tell.

A claim is a list of contrasts, numbers of which each is to lie in its range (``config.paper``). A contrast's
figure is paired by seed, and by test item where it is of the bound, as in every comparison (``statistics``).

    reproduced    every contrast's test rejects "not within its range" (Berger's intersection-union test: the
                  largest of one-sided p-values, two for a range with two ends, Schuirmann 1987)
    contradicted  some contrast's test rejects "within its range" (the smallest p times the number of them)

each at 5%, corrected by Holm's method over all claims of the file. So a file has a claim that is false and
called reproduced in at most 5% of sweeps, and one that is true and called contradicted in at most 5%.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import bdtr, bdtrc

from triptych.config.paper import OF_SAMPLES, OF_THE_BOUND, Claim, Contrast, Paper, Point, read_paper
from triptych.errors import UserError
from triptych.report.statistics import LEVEL, Paired, holm, paired, spread
from triptych.report.words import count, interval, listed, number, p_value, plus_minus
from triptych.runs.plain import line
from triptych.runs.read import Run
from triptych.runs.read_items import read_items

ALPHA = 1 - LEVEL
Word = Literal["reproduced", "contradicted", "cannot tell"]
Values = dict[int | None, float]
Items = dict[int | None, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """A contrast as it was measured. ``outside``: p of "not within its range", ``inside``: of "within".

    ``trouble``: why it cannot be measured, "" if it can; its p-values are then 1.
    """

    contrast: Contrast
    pair: Paired
    outside: float = 1.0
    inside: float = 1.0
    trouble: str = ""

    @property
    def text(self) -> str:
        """ "−0.120 [−0.140, −0.100]"; a ratio as such."""
        if self.trouble:
            return "–"
        if self.contrast.diverges:
            return f"{self.pair.mean:.0%} of {count(self.pair.n, 'seed')}"
        ends = self.pair.mean, self.pair.low, self.pair.high
        mean, low, high = map(math.exp, ends) if self.contrast.ratio else ends
        text = number(mean, sign=self.contrast.second is not None and not self.contrast.ratio)
        return text if math.isnan(low) else f"{text} {interval(low, high)}"

    @property
    def accepted(self) -> str:
        """ "above 0.1", "from 0.9 to 1.1"."""
        if self.contrast.diverges:
            return "above 50%"
        ends = self.contrast.low, self.contrast.high
        reached = map(math.exp, ends) if self.contrast.ratio else ends
        low, high = (f"{end:.4g}".replace("-", "−") for end in reached)
        if math.isinf(ends[1]):
            return f"above {low}"
        return f"below {high}" if math.isinf(ends[0]) else f"from {low} to {high}"


@dataclass(frozen=True)
class Judgement:
    """A claim, what was measured, and the word. ``p``: corrected, of the word that is nearer."""

    claim: Claim
    measured: tuple[Measured, ...]
    figures: tuple[tuple[str, str], ...]  # setting, mean and standard error
    seeds: int
    items: int
    runs: tuple[Run, ...]
    reproduced: float = 1.0
    contradicted: float = 1.0

    @property
    def word(self) -> Word:
        """The verdict."""
        if self.reproduced <= ALPHA:
            return "reproduced"
        return "contradicted" if self.contradicted <= ALPHA else "cannot tell"

    @property
    def p(self) -> float:
        """The corrected p of the verdict; where it is none, of the word that comes nearer."""
        return min(self.reproduced, self.contradicted)

    @property
    def why(self) -> str:
        """What decided, in a sentence."""
        if troubles := list(dict.fromkeys(m.trouble for m in self.measured if m.trouble)):
            if self.word == "cannot tell":
                return "; ".join(troubles[:3]) + "."
        over = count(self.seeds, "seed") + (f" × {self.items} items" if self.items else "")
        if self.word == "reproduced":
            weakest = max(self.measured, key=lambda m: m.outside)
            of = (
                f", of {count(len(self.measured), 'contrast')} the least sure"
                if len(self.measured) > 1
                else ""
            )
            return f"{_told(weakest)}{of}; {_p(self.p)}, {over}."
        if self.word == "contradicted":
            worst = min(self.measured, key=lambda m: m.inside)
            return f"{_told(worst)}; {_p(self.p)}, {over}."
        open_ = [m for m in self.measured if m.outside > ALPHA]
        said = f"; and {len(open_) - 1} more" if len(open_) > 1 else ""
        return f"{_told(max(self.measured, key=lambda m: m.outside))} is open{said}; {over}."

    @property
    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.word}: {self.claim.says} ({self.why.rstrip('.')})"


@dataclass(frozen=True)
class Judged:
    """A paper's claims as a sweep found them, and the node ``paper`` as it recorded it.

    ``changed``: they are not those that the sweep began with.
    """

    paper: Paper
    scale: str
    machine: str
    judgements: tuple[Judgement, ...]
    node: Mapping[str, Any]
    changed: bool = False

    @cached_property
    def tally(self) -> dict[str, int]:
        """How many claims have each word."""
        words = [judgement.word for judgement in self.judgements]
        return {word: words.count(word) for word in ("reproduced", "contradicted", "cannot tell")}  # type: ignore[arg-type]

    @property
    def answer(self) -> str:
        """ "2 of 3 claims reproduced, 1 contradicted"."""
        known = [f"{n} {word}" for word, n in self.tally.items() if n]
        return (
            f"Of {count(len(self.judgements), 'claim')}: {listed(known)}." if known else "No claim is made."
        )


def judged(sweep: Mapping[str, Any], runs: Sequence[Run]) -> Judged | None:
    """The claims that ``sweep.json`` holds, by the runs of the sweep; None where it holds none."""
    node, axes = sweep.get("paper"), sweep.get("paper_axes")
    if not isinstance(node, dict) or not isinstance(axes, dict):
        return None
    scale = str(sweep.get("scale") or "small")
    try:
        known = {str(key): [str(value) for value in values] for key, values in axes.items()}
        name = re.sub(r"[^\w.-]", "", str(sweep.get("paper_name") or ""))[:100]
        paper = read_paper(node, known, name, scale)
    except (UserError, TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return None  # a file that anybody may have written
    seeds = len(known.get("seed", ["1"]))
    found = [_judge(claim, known, runs, seeds) for claim in paper.claims]
    up = holm([_all(j) for j in found])
    down = holm([_any(j) for j in found])
    corrected = tuple(
        Judgement(j.claim, j.measured, j.figures, j.seeds, j.items, j.runs, p, q)
        for j, p, q in zip(found, up, down, strict=True)
    )
    changed = bool(sweep.get("claims_changed"))
    return Judged(paper, scale, line(sweep.get("machine") or ""), corrected, node, changed)


def decide(pair: Paired, low: float, high: float) -> tuple[float, float]:
    """(p of "not within [low, high]", p of "within"), by one-sided tests at each finite end; 1 unknown."""
    if pair.error is None:
        return 1.0, 1.0
    inward = [distance for distance in (pair.mean - low, high - pair.mean) if math.isfinite(distance)]
    outside = max(_one_sided(pair, distance) for distance in inward)
    inside = min(_one_sided(pair, -distance) for distance in inward)
    return outside, min(1.0, len(inward) * inside)


def _one_sided(pair: Paired, distance: float) -> float:
    """p of "the true distance is 0 or less"."""
    assert pair.error is not None
    half = pair.error.p(distance) / 2
    return half if distance > 0 else 1 - half


def _all(judgement: Judgement) -> float:
    """p of "some contrast is out of its range": Berger's intersection-union test."""
    return max((m.outside for m in judgement.measured), default=1.0)


def _any(judgement: Judgement) -> float:
    """p of "all contrasts are within": Bonferroni."""
    found = [m.inside for m in judgement.measured]
    return min(1.0, len(found) * min(found, default=1.0))


def _judge(claim: Claim, axes: Mapping[str, Sequence[str]], runs: Sequence[Run], seeds: int) -> Judgement:
    of = {point: _runs_of(point, axes, runs) for point in claim.points}
    measured = tuple(_measure(contrast, axes, of, seeds) for contrast in claim.contrasts)
    known = [m.pair for m in measured if not m.trouble]
    return Judgement(
        claim, measured, tuple(_figures(claim, axes, of)),
        min((pair.n for pair in known), default=0), min((pair.items for pair in known), default=0),
        tuple({run.dir: run for found in of.values() for run in found}.values()),
    )  # fmt: skip


def _runs_of(point: Point, axes: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> list[Run]:
    """The runs of a setting, by seed; the newest of those that repeat one."""
    wanted = [(key, value) for key, value in point.setting if not _measured_over(key, runs)]
    found = [run for run in runs if all(_typed(run, key) == value for key, value in wanted)]
    ordered = sorted(found, key=lambda run: run.started)
    planned = set(axes.get("seed", ()))
    newest = {run.seed: run for run in ordered if not planned or str(run.seed) in planned}
    return [newest[seed] for seed in sorted(newest, key=lambda s: (s is None, s or 0))]


def _measured_over(key: str, runs: Sequence[Run]) -> bool:
    return any(run.measured is not None and run.measured.key == key for run in runs)


def _typed(run: Run, key: str) -> str:
    for known in (run.overrides, run.choices, run.config):
        if key in known:
            return known[key]
    return ""


def _measure(
    contrast: Contrast, axes: Mapping[str, Sequence[str]], of: Mapping[Point, list[Run]], seeds: int
) -> Measured:
    nothing = Paired(math.nan, 0)
    points = [point for point in (contrast.first, contrast.second) if point]
    for point in points:
        ended = [run for run in of[point] if run.status in ("finished", "diverged")]
        if len(ended) < seeds:
            return Measured(
                contrast,
                nothing,
                trouble=f"{len(ended)} of {count(seeds, 'run')} of {_label(point, axes)} ended",
            )
        diverged = sum(run.status == "diverged" for run in ended)
        if contrast.diverges:
            n = len(ended)
            # the chance of as many, or as few, under a probability of one half
            many = float(bdtrc(diverged - 1, n, 0.5)) if diverged else 1.0
            return Measured(contrast, Paired(diverged / n, n), many, float(bdtr(diverged, n, 0.5)))
        if diverged:
            return Measured(
                contrast,
                nothing,
                trouble=f"{_label(point, axes)} diverged with {diverged} of {count(len(ended), 'seed')}",
            )
    if len({run.fingerprint for point in points for run in of[point] if run.fingerprint}) > 1:
        return Measured(contrast, nothing, trouble=f"{contrast.name}: not on the same data")
    values = [_values(point, of[point]) for point in points]
    for point, found in zip(points, values, strict=True):
        if len(found) < len(of[point]):
            return Measured(contrast, nothing, trouble=f"{_label(point, axes)} has no finite {point.metric}")
    if contrast.ratio:
        if any(value <= 0 for found in values for value in found.values()):
            return Measured(contrast, nothing, trouble=f"{contrast.name}: a figure is not above 0")
        values = [{seed: math.log(value) for seed, value in found.items()} for found in values]
    items = None if contrast.ratio else _items(points, of)
    if contrast.second is None:
        pair = paired(dict.fromkeys(values[0], 0.0), values[0], items)
    else:
        pair = paired(values[1], values[0], items)
    if pair.error is None:
        why = "one seed" if pair.n < 2 else "every seed gave the same figure"
        return Measured(contrast, pair, trouble=f"{contrast.name}: {why}, no error is known")
    return Measured(contrast, pair, *decide(pair, contrast.low, contrast.high))


def _values(point: Point, runs: Sequence[Run]) -> Values:
    """The figure of each seed, finite ones."""
    found = {run.seed: _figure(point, run) for run in runs}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _figure(point: Point, run: Run) -> float:
    unit, name = run.measure or "", point.metric
    if name == "estimator_variance":
        return run.variance
    if name in OF_SAMPLES and run.measured is not None:
        at = run.measured.at(name)
        wanted = dict(point.setting).get(run.measured.key)
        places = [i for i, v in enumerate(run.measured.values) if wanted is None or f"{v:g}" == wanted]
        return at[places[0]] if len(places) == 1 else math.nan
    if name in ("train_bound", "val_bound"):
        figures: Any = run.train if name == "train_bound" else run.val
        key = unit
    else:
        figures = run.test
        plain = name not in OF_THE_BOUND or name in ("gap", "entropy")
        key = name if plain else unit if name == "bound" else f"{unit}_{name}"
    return figures[key].mean if key in figures else math.nan


def _items(points: Sequence[Point], of: Mapping[Point, list[Run]]) -> Items | None:
    """By item: the bound of a setting, or of the first minus the second; None unless all are of the bound."""
    if any(point.metric != "bound" for point in points):
        return None
    found: Items = {}
    index = None
    for sign, point in zip((1, -1), points, strict=False):
        for run in of[point]:
            items = read_items(run.dir, run.bound)
            if items is None or (index is not None and not np.array_equal(index, items.index)):
                return None
            index = items.index
            found[run.seed] = (
                found[run.seed] + sign * items.total if run.seed in found else sign * items.total
            )
    return found


def _figures(
    claim: Claim, axes: Mapping[str, Sequence[str]], of: Mapping[Point, list[Run]]
) -> list[tuple[str, str]]:
    """Each setting's mean and standard error over seeds."""
    place = {(key, value): i for key, values in axes.items() for i, value in enumerate(values)}
    found = []
    for point in sorted(claim.points, key=lambda p: [place.get(one, 0) for one in p.setting]):
        values = list(_values(point, of[point]).values())
        diverged = sum(run.status == "diverged" for run in of[point])
        text = plus_minus(spread(values)) if values else "–"
        found.append((_label(point, axes, claim), text + (f", {diverged} diverged" if diverged else "")))
    return found


def _label(point: Point, axes: Mapping[str, Sequence[str]], claim: Claim | None = None) -> str:
    """A setting by the values that tell it from the others of the sweep, or of the claim."""
    if claim is None:
        told = [value for key, value in point.setting if len(axes.get(key, ())) > 1]
    else:
        several = {
            key for key, _ in point.setting if len({dict(p.setting).get(key) for p in claim.points}) > 1
        }
        told = [value for key, value in point.setting if key in several]
    metrics = {p.metric for p in claim.points} if claim else set()
    return " / ".join([*told, *([point.metric] if len(metrics) > 1 or not told else [])])


def _p(p: float) -> str:
    said = p_value(p)
    return f"p {said[0]} {said[1:]}" if said[0] == "<" else f"p = {said}"


def _told(measured: Measured) -> str:
    return f"{measured.contrast.name} = {measured.text}, {measured.accepted} is claimed"
