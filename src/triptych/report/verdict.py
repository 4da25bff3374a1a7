"""The answer in words. "Beats" and "the same" are said only where the corrected test says so (`claims`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triptych.report import measures
from triptych.report.claims import Claim
from triptych.report.compare import Comparison
from triptych.report.statistics import Paired
from triptych.report.words import count, interval, listed, number, p_value, plus_minus

ONE_SEED = "one seed: no interval, no ranking claimed"


@dataclass(frozen=True)
class Verdict:
    """`headline` is the answer in one sentence; `lines` are about other cells or other measures."""

    headline: str
    lines: tuple[str, ...] = ()


def verdict(comparison: Comparison) -> Verdict:
    """What these runs show, and no more; that some diverged is a result, too."""
    said, lost = _verdict(comparison), divergences(comparison)
    return Verdict(f"{said.headline} {lost}", said.lines) if lost else said


def divergences(comparison: Comparison) -> str:
    """ "x0 diverged with 3 of 5 seeds: figures are of the others."; "" where none did."""
    cells = [cell for cell in (*comparison.cells, *comparison.pending) if cell.diverged]
    said = [
        f"{cell.label} diverged with {cell.diverged} of {count(len(cell.runs) + len(cell.others), 'seed')}"
        for cell in cells
    ]
    if not said:
        return ""
    rest = ": figures are of the others" if any(cell.runs for cell in cells) else ""
    return f"{listed(said)}{rest}."


def _verdict(comparison: Comparison) -> Verdict:
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
    claims = {j: comparison.claim(0, j) for j in range(1, len(cells))}
    ahead = [j for j, claim in claims.items() if claim.pair.high < 0]
    if ahead:
        # possible only where seeds differ: the means are then not over the same seeds, the pairs are
        return f"{lowest}, but over the seeds both have, {sentence(comparison, 0, ahead[0])}."
    beaten = [j for j, claim in claims.items() if claim.holds and claim.pair.mean > 0]
    same = [j for j, claim in claims.items() if claim.equal and j not in beaten]
    hints = [j for j, claim in claims.items() if claim.hint and j not in beaten + same]
    level = [j for j in claims if j not in beaten + same + hints]
    rest = []
    if hints:
        rest.append(f"may be better than {_names(comparison, hints)} (a hint, no claim)")
    if same:
        rest.append(f"is the same as {_names(comparison, same)} within {_margin(comparison)}")
    if level:
        rest.append(f"is not distinguishable from {_names(comparison, level)}")
    if not beaten:
        return f"No ranking: {lowest}, but {_joined(rest)}."
    nearest = min(beaten, key=lambda j: claims[j].pair.mean)
    by = _by(claims[nearest].pair, comparison.unit)
    if len(beaten) == 1:
        won = f"{cells[nearest].label} by {by}"
    else:
        won = f"{_names(comparison, beaten)} (the nearest, {cells[nearest].label}, by {by})"
    if rest:
        return f"{lowest}; it beats {won}, but {_joined(rest)}."
    return f"{best.label} beats {won}." if len(beaten) == 1 else f"{lowest}, and beats {won}."


def sentence(comparison: Comparison, i: int, j: int) -> str:
    """One comparison in words: "levels beats v by 0.120 bits/dim, 95% interval [...], 3 paired seeds"."""
    claim, unit = comparison.claim(i, j), comparison.unit
    pair = claim.pair
    first, second = comparison.cells[i].label, comparison.cells[j].label
    if pair.n == 0:
        return f"{first} and {second} share no seed: not compared"
    difference = f"{second} − {first} = {number(pair.mean, sign=True)} {unit}"
    if pair.n == 1:
        return f"{difference}; {ONE_SEED}"
    if math.isnan(pair.low):
        return f"{difference} for every seed: no interval, no ranking claimed"
    better, worse = (first, second) if pair.mean > 0 else (second, first)
    by = _by(pair if pair.mean > 0 else pair.reversed(), unit)
    within = f"the same within {_margin(comparison)}" if claim.equal else ""
    if claim.holds:
        return f"{better} beats {worse} by {by}" + (f"; both are {within}" if within else "")
    ends = f"95% interval {interval(pair.low, pair.high)}, {_over(pair)}"
    if within:
        return f"{first} and {second} are {within}: {difference}, {ends}"
    if claim.hint:
        return f"{better} may be better than {worse}, by {by}: {_why_a_hint(comparison, claim)}"
    return f"{first} and {second} are not distinguishable: {difference}, {ends}"


def footnote(comparison: Comparison) -> str:
    """What the intervals and p-values do and do not cover, and how far they can be trusted."""
    rule, name = comparison.rule, measures.deciding(comparison)
    said = ["± is the standard error over seeds."]
    pairs = [claim.pair for key, claim in comparison.claims.items() if key[0] == name]
    known = [pair for pair in pairs if not math.isnan(pair.low)]
    if not name:
        said.append(_covered(comparison, known))
        if any(math.isfinite(cell.draw_error) for cell in comparison.cells):
            said.append(
                "“By draws” is the most that the random times and noise of the measurement can have made of "
                "±; few draws an item leave it above ± itself, and then it says nothing."
            )
    if comparison.one_training:
        said.append(
            "All seeds of a setting are of one trained model: errors and intervals cover what is drawn at "
            "random after training, not what another training would have changed."
        )
    if comparison.tests > 1:
        said.append(
            f"This report could claim {comparison.tests} things (pairs of settings"
            f"{', by the bound and by each measure' if _measured(comparison) else ''}); p is corrected "
            "for all "
            "of them by Holm's method, so that with no true difference anywhere “beats” is printed in at "
            "most "
            "5% of reports. That the best was picked on the same test items is covered, since all pairs "
            "count. "
            "Intervals are not corrected: one that excludes zero while p exceeds 0.05 is a hint."
        )
    elif name:
        said.append("A setting is said to beat another only where p is at most 0.05.")
    if rule.looks > 1:
        said.append(
            f"Of {rule.looks} planned looks this is number {max(len(rule.seen), 1)}: each may spend one "
            f"{_ordinal(rule.looks)} of the 5%, so that looking again does not add errors; intervals are "
            "for a "
            "single look."
        )
    if rule.interim:
        said.append("The sweep has not ended: until then nothing is claimed.")
    if rule.equal_within is not None and known:
        said.append(
            f"“The same” means that two one-sided tests, corrected likewise, put the difference within "
            f"{_margin(comparison)}; “not distinguishable” means that it cannot be told."
        )
    few = min((pair.n for pair in known), default=0)
    if 0 < few <= 4:
        said.append(
            f"An interval from {few} seeds covers the truth as often as it says, but its width is a "
            "guess: the "
            f"spread that {few} seeds show lies, four times in five, between {_WIDTHS[few]} times the "
            "true one, "
            "and other seeds or another processor may give an interval several times as wide or as narrow."
        )
    if name:
        said.append(measures.about(comparison))
    return " ".join(said)


# 80% of sample standard deviations lie within these multiples of the true one: sqrt(chi2_{n-1} / (n - 1))
_WIDTHS = {2: "0.13 and 1.6", 3: "0.32 and 1.5", 4: "0.44 and 1.4"}


def _covered(comparison: Comparison, known: list[Paired]) -> str:
    with_items = [pair for pair in known if pair.items]
    seed = "draws" if comparison.one_training else "initial weights, batches, noise"
    n = max((run.test[comparison.measure].n for c in comparison.cells for run in c.runs.values()), default=0)
    if known and len(with_items) == len(known):
        return (
            "Differences are paired by seed and by item; their 95% intervals cover both what changes "
            "with the "
            f"seed ({seed}) and which {with_items[0].items} items happen to be "
            "in the "
            "test set."
        )
    said = (
        "Differences are paired by seed; their 95% Student-t intervals cover what changes with the seed "
        f"({seed}), not which {n or 'the'} items happen to be in the test set"
    )
    if not with_items:
        return said + " (these runs recorded no bounds by item)." if known else said + "."
    return (
        said + f"; in {len(with_items)} of {count(len(known), 'pair')} they are paired by item and cover it."
    )


def _measured(comparison: Comparison) -> bool:
    return len({key[0] for key in comparison.claims}) > 1


def _why_a_hint(comparison: Comparison, claim: Claim) -> str:
    if claim.interim:
        return "a hint, the sweep has not ended"
    return f"a hint, for corrected for {count(comparison.tests, 'possible claim')} p = {p_value(claim.p)}"


def _by(pair: Paired, unit: str) -> str:
    return f"{number(pair.mean)} {unit}, 95% interval {interval(pair.low, pair.high)}, {_over(pair)}"


def _over(pair: Paired) -> str:
    return count(pair.n, "paired seed") + (f" × {pair.items} items" if pair.items else "")


def _margin(comparison: Comparison) -> str:
    return f"{comparison.rule.equal_within:g} {comparison.unit}"


def _joined(clauses: list[str]) -> str:
    return ", ".join(clauses[:-1]) + (", and " if len(clauses) > 1 else "") + clauses[-1]


def _ordinal(n: int) -> str:
    return {2: "half", 3: "third", 4: "fourth", 5: "fifth"}.get(n, f"{n}th")


def _names(comparison: Comparison, indices: list[int]) -> str:
    """The cells by name; by number where that would fill lines."""
    rivals = len(comparison.cells) - 1
    if len(indices) == rivals:
        return (
            f"all {rivals} others"
            if rivals > 2
            else "both others"
            if rivals == 2
            else comparison.cells[1].label
        )
    if len(indices) > 4:
        return f"{len(indices)} of the {rivals} others"
    return listed([comparison.cells[j].label for j in indices])
