"""The answer in words. A ranking is claimed only where a paired 95% interval excludes zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triptych.report import measures
from triptych.report.compare import Comparison
from triptych.report.statistics import LEVEL, Paired
from triptych.report.words import count, interval, listed, number, p_value, plus_minus

ONE_SEED = "one seed: no interval, no ranking claimed"


@dataclass(frozen=True)
class Verdict:
    """`headline` is the answer in one sentence; `lines` are about other cells or other measures."""

    headline: str
    lines: tuple[str, ...] = ()


def verdict(comparison: Comparison) -> Verdict:
    """What these runs show, and no more."""
    if not comparison.cells:
        return Verdict("No run has reported a finite test bound yet.")
    if name := measures.deciding(comparison):
        rest = (measures.ranking(comparison, other) for other in measures.KNOWN if other != name)
        return Verdict(measures.ranking(comparison, name), tuple(filter(None, rest)))
    others = range(1, len(comparison.cells))
    return Verdict(_headline(comparison), tuple(sentence(comparison, 0, j) for j in others))


def _headline(comparison: Comparison) -> str:
    cells, best = comparison.cells, comparison.cells[0]
    figure = f"{plus_minus(best.bound)} {comparison.unit}"
    if len(cells) == 1:
        seeds = count(best.bound.n, "seed")
        return f"{best.label}: {figure} over {seeds}; there is nothing to compare it with yet."
    lowest = f"{best.label} has the lowest mean test bound, {figure}"
    if max(cell.bound.n for cell in cells) == 1:
        return f"{best.label} has the lowest test bound, {figure}, but {ONE_SEED}."
    others = range(1, len(cells))
    beaten = [j for j in others if comparison.pair(0, j).low > 0]
    ahead = [j for j in others if comparison.pair(0, j).high < 0]
    level = [j for j in others if j not in beaten and j not in ahead]
    if ahead:
        # possible only where seeds differ: the means are then not over the same seeds, the pairs are
        return f"{lowest}, but over the seeds both have, {sentence(comparison, 0, ahead[0])}."
    if not beaten:
        rest = "any other" if len(level) > 1 else cells[1].label
        return f"No ranking: {lowest}, but is not distinguishable from {rest} at the {LEVEL:.0%} level."
    nearest = min(beaten, key=lambda j: comparison.pair(0, j).mean)
    by = _by(comparison.pair(0, nearest), comparison.unit)
    if len(beaten) == 1:
        won = f"{cells[nearest].label} by {by}"
    else:
        won = f"{_names(comparison, beaten)} (the nearest, {cells[nearest].label}, by {by})"
    if level:
        said = f"{lowest}; it beats {won}, but is not distinguishable from {_names(comparison, level)}."
    else:
        said = f"{best.label} beats {won}." if len(beaten) == 1 else f"{lowest}, and beats {won}."
    remain = sum(comparison.p(0, j) <= 1 - LEVEL for j in beaten)
    if remain < len(beaten):
        left = f"{remain} of these {len(beaten)} remain" if len(beaten) > 1 else "this does not hold"
        said += f" After correcting for {count(_tests(comparison), 'comparison')}, {left}."
    return said


def sentence(comparison: Comparison, i: int, j: int) -> str:
    """One comparison in words: "levels beats v by 0.120 bits/dim, 95% interval [...], 3 paired seeds"."""
    pair, unit = comparison.pair(i, j), comparison.unit
    first, second = comparison.cells[i].label, comparison.cells[j].label
    if pair.n == 0:
        return f"{first} and {second} share no seed: not compared"
    difference = f"{number(pair.mean, sign=True)} {unit}"
    if pair.n == 1:
        return f"{second} − {first} = {difference}; {ONE_SEED}"
    if math.isnan(pair.low):
        return f"{second} − {first} = {difference} for every seed: no interval, no ranking claimed"
    if not pair.distinguishable:
        ends = f"95% interval {interval(pair.low, pair.high)}, {count(pair.n, 'paired seed')}"
        return f"{first} and {second} are not distinguishable: {second} − {first} = {difference}, {ends}"
    winner, loser = (first, second) if pair.mean > 0 else (second, first)
    p, tests = comparison.p(i, j), _tests(comparison)
    caveat = f"; not after correcting for {tests} comparisons (p = {p_value(p)})" if p > 1 - LEVEL else ""
    return f"{winner} beats {loser} by {_by(pair if pair.mean > 0 else pair.reversed(), unit)}{caveat}"


def footnote(comparison: Comparison) -> str:
    """What the intervals and p-values do and do not cover."""
    if measures.deciding(comparison):
        return (
            "± is the standard error over seeds; a setting is said to beat another only where the 95% "
            "Student-t interval of their differences, paired by seed, excludes zero. "
            + measures.about(comparison)
        )
    n = max((run.test[comparison.measure].n for c in comparison.cells for run in c.runs.values()), default=0)
    said = (
        "± is the standard error over seeds. Differences are paired by seed; their 95% Student-t intervals "
        f"cover what changes with the seed (initial weights, batches, noise), not which {n or 'the'} items "
        "happen to be in the test set."
    )
    if _tests(comparison) > 1:
        said += (
            " The best is picked by its mean on that same test set, which flatters it a little, so p is "
            f"adjusted by Holm's method over all {_tests(comparison)} pairs, not only those with the best; "
            "intervals are not adjusted: one that excludes zero while p exceeds 0.05 is a hint."
        )
    return said


def _by(pair: Paired, unit: str) -> str:
    ends = interval(pair.low, pair.high)
    return f"{number(pair.mean)} {unit}, 95% interval {ends}, {count(pair.n, 'paired seed')}"


def _names(comparison: Comparison, indices: list[int]) -> str:
    """The cells by name; by number where that would fill lines."""
    rivals = len(comparison.cells) - 1
    if len(indices) == rivals:
        return f"all {rivals} others" if rivals > 2 else "both others"
    if len(indices) > 4:
        return f"{len(indices)} of the {rivals} others"
    return listed([comparison.cells[j].label for j in indices])


def _tests(comparison: Comparison) -> int:
    return sum(not math.isnan(p) for p in comparison.adjusted.values())
