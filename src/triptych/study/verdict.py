"""State the verdict in plain words, as far as the corrected test allows (`claims`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triptych.files import printable
from triptych.run.read import Run
from triptych.study.cells import Comparison, MeasureTable, PairTest
from triptych.study.claims import MOST, seeds_to_settle
from triptych.study.formatting import format_number, listed, plus_minus, quantity
from triptych.study.groups import is_trial

# a summary's baselines, with their articles
BASELINES = {"uniform": "a uniform guess", "histogram": "the per-pixel histogram"}
NAMED = 4  # settings that are named in a sentence; more are counted


@dataclass(frozen=True)
class Verdict:
    """`sentences` are the answer, one a relation; `lines` are about measures of samples.

    `untrained`: whether no setting is better than a trivial baseline, so that more seeds would settle little.
    """

    sentences: tuple[str, ...]
    lines: tuple[str, ...] = ()
    untrained: bool = False

    @property
    def headline(self) -> str:
        """The answer in a line."""
        return " ".join(self.sentences)


def verdict(comparison: Comparison) -> Verdict:
    """State what these runs show, diverged and untrained settings included."""
    deciding = comparison.deciding
    worse = no_better({cell.label: [*cell.runs.values()] for cell in comparison.cells})
    if untrained := worse.startswith("No setting"):
        worse = f"{worse.removesuffix('.')}: train longer."
    if comparison.is_unmeasured:
        answer = ["These settings share one model and its bound: measures.n=1000 compares their samples."]
    elif comparison.cells:
        answer = [ranking(comparison, deciding)] if deciding else _sentences(comparison, untrained)
    else:
        answer = ["No run has reported a finite test bound yet."]
    others = (table for table in comparison.measures.values() if table is not deciding)
    lines = tuple(filter(None, (ranking(comparison, other) for other in others)))
    best = comparison.cells[0].label if comparison.cells else ""
    first = untrained or worse.startswith(f"{best} is no better")
    before, after = (worse, "") if first else ("", worse)
    sentences = (before, *answer, after, divergences(comparison), failures(comparison))
    return Verdict(tuple(filter(None, sentences)), lines, untrained)


def best_untested(runs: Sequence[Run]) -> str:
    """Name the best of runs without a test, as a search's, by the figure that was optimised; "" for none."""
    metric = next((run.config["optimized_metric"] for run in runs if "optimized_metric" in run.config), "")
    figures = {run.dir.name: run.figure(metric) for run in runs if is_trial(run)}
    known = {name: figure for name, figure in figures.items() if figure is not None}
    if not known:
        return ""
    best = max if any(run.higher_is_better(metric) for run in runs) else min
    name = best(known, key=lambda run: known[run])
    lead = f"{name}, {metric} {format_number(known[name])}"
    return printable(f"Best of {quantity(len(known), 'run')} without a test: {lead}.")


def no_better(runs: Mapping[str, Sequence[Run]]) -> str:
    """Name settings whose mean test bound is no better than a trivial baseline; "" if there are none."""
    every = [run for of in runs.values() for run in of if run.measure == "bpd"]
    known = {name: x for run in every for name, x in run.baselines.items() if name in BASELINES}
    bounds = {label: [run.bound for run in of if math.isfinite(run.bound)] for label, of in runs.items()}
    mean = {label: math.fsum(of) / len(of) for label, of in bounds.items() if of}
    order = sorted(known, key=lambda name: -known[name])
    what = {name: f"{BASELINES[name]} ({format_number(known[name])} bits/dim)" for name in order}
    if len(mean) > 1 and (of_all := [name for name in order if min(mean.values()) >= known[name]]):
        return f"No setting is better than {what[of_all[0]]}."
    worst = {label: next((name for name in order if x >= known[name]), "") for label, x in mean.items()}
    failed = {name: [label for label in mean if worst[label] == name] for name in order}
    return " ".join(
        f"{_names(labels, len(mean))} {'is' if len(labels) == 1 else 'are'} no better than {what[name]}."
        for name, labels in failed.items()
        if labels
    )


def divergences(comparison: Comparison) -> str:
    """State "x0 diverged with 3 of 5 seeds: figures are of the others."; "" where none did."""
    cells = [cell for cell in (*comparison.cells, *comparison.pending) if cell.diverged]
    each = [f"{c.label} diverged with {c.diverged} of {quantity(len(c.seeds), 'seed')}" for c in cells]
    rest = ": figures are of the others" if any(cell.runs for cell in cells) else ""
    return f"{listed(each)}{rest}." if each else ""


def failures(comparison: Comparison) -> str:
    """Name the settings of which every run failed: they are not among "the others"; "" if none did."""
    lost = [c.label for c in comparison.pending if c.others and {r.status for r in c.others} == {"failed"}]
    every = len(comparison.cells) + len(comparison.pending)
    return f"{_names(lost, every)} failed: no run has a result." if lost else ""


def _sentences(comparison: Comparison, untrained: bool) -> list[str]:
    cells, best = comparison.cells, comparison.cells[0]
    figure = f"{plus_minus(best.bound)} {comparison.unit}"
    if len(cells) == 1:
        if len(comparison.runs) == 1:  # whose ± is over the items of its test set
            own = comparison.runs[0].test[comparison.measure]
            figure = f"{plus_minus(own)} {comparison.unit} ({quantity(own.n, 'item')})"
        answer = f"{best.label}: {figure}, {quantity(best.bound.n, 'seed')}."
        return [answer, "No other setting to compare with."]
    lowest = f"{best.label} is lowest: {figure}."
    if max(cell.bound.n for cell in cells) == 1:
        return [lowest, "One seed: nothing is settled."]
    claims = {cell.label: comparison.claim(0, j) for j, cell in enumerate(cells) if j}
    sentences = [lowest]
    if clear := [label for label, claim in claims.items() if claim.holds and claim.pair.mean > 0]:
        sentences.append(f"Clear of {_names(clear, len(claims))}.")
    # possible only where seeds differ: the means are then not over the same seeds, the pairs are
    if ahead := [label for label, claim in claims.items() if claim.holds and claim.pair.mean < 0]:
        verb = "is" if len(ahead) == 1 else "are"
        sentences.append(f"Over the seeds that both have, {_names(ahead, len(claims))} {verb} clear of it.")
    if same := [label for label, claim in claims.items() if claim.equal and label not in clear + ahead]:
        margin = f"{comparison.rule.equal_within:g} {comparison.unit}"
        sentences.append(f"The same as {_names(same, len(claims))} within {margin}.")
    if left := {label: claim for label, claim in claims.items() if label not in clear + ahead + same}:
        interim = comparison.rule.interim
        would = "" if interim or untrained else _would_settle(left, len(claims))
        sentences.append(f"Not settled against {_names([*left], len(claims))}{would}.")
        sentences += ["Nothing is settled before the sweep ends."] if interim else []
    return sentences


def _would_settle(left: Mapping[str, PairTest], rivals: int) -> str:
    if not all(claim.pair.error for claim in left.values()):
        return ""
    needed: dict[int | None, list[str]] = {}
    for label, claim in left.items():
        needed.setdefault(seeds_to_settle(claim), []).append(label)
    never, counts = needed.pop(None, []), sorted(n for n in needed if n)
    if len(counts) > NAMED:
        needed, counts = {counts[-1]: [label for label in left if label not in never]}, counts[-1:]
    parts = [f"about {n} seeds per setting would settle {_names(needed[n], rivals)}" for n in counts]
    if never:
        parts.append(f"{MOST} seeds would not settle {_names(never, rivals)}")
    return f": {', '.join(parts)}"


def ranking(comparison: Comparison, table: MeasureTable) -> str:
    """Describe which setting is clear of others by a measure, and which are no better than noise."""
    if not table.metric.better:
        return ""
    lost = []
    for label, spreads in table.spreads.items():
        places = zip(table.values, spreads, strict=True)
        beyond = [v for v, s in places if table.sign * (s.mean - table.noise) >= -1e-9 * abs(table.noise)]
        at = f" (at {listed([f'{v:g}' for v in beyond])})" if len(beyond) < len(spreads) else ""
        lost += [label + at] if beyond else []
    parts = [f"no better than noise ({format_number(table.noise)}): {listed(lost)}"] if lost else []
    if len(table.cells) > 1:
        values_of: dict[str, list[str]] = {}
        for i, value in enumerate(table.values):
            values_of.setdefault(_best(comparison, table, i), []).append(f"{value:g}")
        each = [f"at {listed(v)} {text}" for text, v in values_of.items()]
        parts += each if table.key and len(values_of) > 1 else list(values_of)
    return f"By {table.metric.title} ({table.metric.better}): {'; '.join(parts)}." if parts else ""


def _best(comparison: Comparison, table: MeasureTable, i: int) -> str:
    first, *rest = table.order(i)
    claims = {label: comparison.sampled(table.metric.name, i, first, label) for label in rest}
    clear = [label for label in rest if claims[label].holds and table.sign * claims[label].pair.mean > 0]
    if not clear:
        return "nothing is settled"
    text = f"{first} is clear of {_names(clear, len(rest))}"
    left = [label for label in rest if label not in clear]
    return f"{text}, not settled against {_names(left, len(rest))}" if left else text


def footnote(comparison: Comparison) -> str:
    """Return what the intervals and p-values do and do not cover."""
    rule, name = comparison.rule, comparison.question.metric.name
    pairs = [claim.pair for key, claim in comparison.claims.items() if key[0] == name]
    parts = ["± is the standard error over seeds."]
    if pairs and not name:
        by_item = sum(pair.n_items > 0 for pair in pairs)
        seed = "draws" if comparison.one_training else "initial weights, batches, noise"
        parts.append(
            f"Differences are paired by seed, in {by_item} of {quantity(len(pairs), 'pair')} by item too. "
            f"Their intervals cover what changes with the seed ({seed}), and where they are paired by item "
            "which items are in the test set."
        )
    if comparison.one_training:
        parts.append(
            "All seeds of a setting are of one trained model: errors and intervals cover what is drawn at "
            "random after training, not what another training would have changed."
        )
    if comparison.tests > 1:
        measured = len({key[0] for key in comparison.claims}) > 1
        parts.append(
            f"{comparison.tests} differences are tested here (pairs of settings"
            f"{', by the bound and by each measure' if measured else ''}). Holm's method "
            "corrects p for all of them: with no true difference anywhere, at most 5% of reports say “clear "
            "of”. All pairs count, so it is covered that the best was picked on the same test items. "
            "Intervals are corrected likewise: one excludes zero where p is at most 0.05."
        )
    if rule.looks > 1:
        parts.append(
            f"This is look {max(len(rule.seen), 1)} of {rule.looks}. Each may spend 1/{rule.looks} of the "
            "5%, so looking again adds no errors."
        )
    if rule.interim:
        parts.append("The sweep has not ended: nothing is settled before.")
    if rule.equal_within is not None and pairs:
        parts.append(
            f"“The same”: two one-sided tests, corrected likewise, put the difference within "
            f"{rule.equal_within:g} {comparison.unit}. “Not settled”: these runs show neither."
        )
    if name:
        parts.append(about(comparison))
    return " ".join(parts)


def _names(labels: list[str], of: int) -> str:
    """Name settings, or count them where they are many: "all 6", "5 of 6"."""
    if len(labels) <= NAMED:
        return listed(labels)
    return f"all {of}" if len(labels) == of else f"{len(labels)} of {of}"


def about(comparison: Comparison) -> str:
    """Describe the number of samples and their reference."""
    measured = next((run.measured for run in comparison.runs if run.measured), None)
    if measured is None:
        return ""
    tables = comparison.measures
    fewer = [f"{tables[k].metric.title}: {n}" for k, n in measured.fewer.items() if k in tables]
    aside = f" ({'; '.join(fewer)})" if fewer else ""
    return f"{measured.n} samples a set{aside}, against {measured.reference}."
