"""State a comparison's verdict in sentences, as far as the corrected tests allow (`claims`)."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Self

from triptych.files import escape_control_characters
from triptych.run.parsing import Estimate
from triptych.run.read import Run
from triptych.study.cells import Cell, MeasureTable, PairTest
from triptych.study.comparison import Comparison
from triptych.study.footnotes import margin_text
from triptych.study.formatting import count_noun, format_number, join_names, plus_minus
from triptych.study.groups import is_trial
from triptych.study.statistics import spread
from triptych.study.weighting import neglecting_settings

# {trivial baseline: its name in a sentence}
BASELINES = {"uniform": "a uniform guess", "histogram": "the per-pixel histogram"}
NAMED = 4  # maximum number of settings that a sentence names; more are counted


@dataclass(frozen=True)
class Verdict:
    """The answer in sentences, and one line for each metric of samples.

    `hopeless`: whether no setting is better than a trivial baseline, or than pure noise if samples
    decide, so that more seeds would not help.
    """

    sentences: tuple[str, ...]
    lines: tuple[str, ...] = ()
    hopeless: bool = False

    @property
    def headline(self) -> str:
        """The answer on one line."""
        return " ".join(self.sentences)


class Weakness(NamedTuple):
    """A sentence on the settings that are no better than a trivial baseline; "" if none is.

    `of_all`: whether no setting is better.
    """

    text: str = ""
    of_all: bool = False


def find_weakness(runs_by_label: Mapping[str, Collection[Run]]) -> Weakness:
    """Compare each setting's mean test bound with the best recorded trivial baseline."""
    bounds: dict[str, float] = {}
    for run in chain.from_iterable(runs_by_label.values()):
        if run.measure == "bpd":
            bounds |= {name: run.baselines[name] for name in BASELINES if name in run.baselines}
    if not bounds:
        return Weakness()
    best = min(bounds, key=lambda name: bounds[name])
    labels = []
    for label, runs in runs_by_label.items():
        finite = [run.bound for run in runs if math.isfinite(run.bound)]
        if spread(finite).mean >= bounds[best]:
            labels.append(label)
    if not labels:
        return Weakness()
    baseline = f"{BASELINES[best]} ({format_number(bounds[best])} bits/dim)"
    if len(labels) == len(runs_by_label) > 1:
        text = f"No setting is better than {baseline}: none has learned the data yet."
        return Weakness(text, of_all=True)
    verb = "is" if len(labels) == 1 else "are"
    text = f"{_names_or_count(labels)} {verb} no better than {baseline}."
    return Weakness(text, of_all=len(labels) == len(runs_by_label))


def describe_verdict(comparison: Comparison) -> Verdict:
    """Describe the result of these runs, including diverged and untrained settings."""
    weakness = find_weakness({cell.label: cell.runs.values() for cell in comparison.cells})
    sentences = _verdict_sentences(comparison, weakness.of_all)
    sentences.insert(0 if weakness.of_all else len(sentences), weakness.text)
    sentences.append(lost_seeds_sentence(comparison))
    measures = comparison.measures.values()
    deciding = comparison.deciding
    lines = [ranking(comparison, table) for table in measures if table is not deciding]
    hopeless = weakness.of_all
    if deciding:
        hopeless = len(noisy_labels(deciding)) == len(deciding.cells)
    return Verdict(tuple(filter(None, sentences)), tuple(filter(None, lines)), hopeless)


def _verdict_sentences(comparison: Comparison, all_untrained: bool) -> list[str]:
    if comparison.is_unmeasured:
        return [
            "These settings share one model and its bound; to compare their samples, set "
            "measures.n=1000."
        ]
    if not comparison.cells:
        return ["No run has reported a finite test bound yet."]
    if comparison.deciding:
        return [ranking(comparison, comparison.deciding)]
    if len(comparison.cells) == 1:
        return _single_setting(comparison)
    return [*_rank_by_bound(comparison, all_untrained), _neglected_bound_sentence(comparison)]


def _neglected_bound_sentence(comparison: Comparison) -> str:
    """Warn of settings whose loss hardly trains what the bound judges; "" if there are none."""
    labels = neglecting_settings(comparison)
    if not labels:
        return ""
    titles = [table.metric.title for table in comparison.measures.values() if table.metric.better]
    by = f"by {_names_or_count(titles, 'measure')}" if titles else "with measures.n=1000"
    return (
        f"The bound judges noise levels that the loss of {_names_or_count(labels)} hardly trains: "
        f"compare samples {by}."
    )


def best_untested(runs: Sequence[Run]) -> str:
    """Return a sentence on the best run of a search without a test set; "" if there is none.

    Runs are compared by the metric that the search optimised.
    """
    metrics = [run.config["optimized_metric"] for run in runs if "optimized_metric" in run.config]
    if not metrics:
        return ""
    metric = metrics[0]
    figures = {run.dir.name: run.figure(metric) for run in runs if is_trial(run)}
    known = {name: figure for name, figure in figures.items() if figure is not None}
    if not known:
        return ""
    best = max if any(run.higher_is_better(metric) for run in runs) else min
    name = best(known, key=lambda run: known[run])
    return escape_control_characters(
        f"Best of {count_noun(len(known), 'run')} without a test: {name}, {metric} "
        f"{format_number(known[name])}."
    )


def lost_seeds_sentence(comparison: Comparison) -> str:
    """Return a sentence on diverged or failed seeds; "" if there are none.

    As in "x0 diverged with 3 of 5 seeds: only the other seeds count."
    """
    partly: dict[str, list[str]] = {}  # {how the seeds ended: settings}
    fully: dict[str, list[str]] = {}
    for cell in comparison.all_cells:
        lost = partly if cell.runs else fully
        for status in ("diverged", "failed"):
            n = len(cell.seeds_ended_as(status))
            if n:
                end = f"{status} with {n} of {count_noun(len(cell.seeds), 'seed')}"
                lost.setdefault(end, []).append(cell.label)
    sentences = []
    for lost, effect in ((fully, "no figures"), (partly, "only the other seeds count")):
        ends = [f"{_names_or_count(labels)} {end}" for end, labels in lost.items()]
        if ends:
            sentences.append(f"{join_names(ends)}: {effect}.")
    return " ".join(sentences)


def _single_setting(comparison: Comparison) -> list[str]:
    """State the bound of the only setting."""
    (cell,) = comparison.cells
    figure = cell.bound
    items = ""
    if len(cell.runs) == 1:
        # For a single run, use the error over its test items.
        figure = comparison.runs[0].test[comparison.measure]
        items = f" ({count_noun(figure.n, 'item')})"
    answer = (
        f"{cell.label}: {plus_minus(figure)} {comparison.unit}{items}, "
        f"{count_noun(len(cell.runs), 'seed')}."
    )
    return [answer, "No other setting has a result on these data."]


@dataclass
class Relations:
    """The relations of the best setting to the others: labels by outcome, and tests of open pairs.

    `clear`: significantly worse than the best. `ahead`: better than the best over the seeds that
    both have, which is possible only if the settings have different seeds. `identical`: with the
    same figures to the last digit.
    """

    clear: list[str]
    ahead: list[str]
    same: list[str]
    identical: list[str]
    open: dict[str, PairTest]

    @classmethod
    def to_best(cls, comparison: Comparison, table: MeasureTable, value_index: int) -> Self:
        """Test each other setting against the best one, and list it under the test's outcome.

        `value_index`: the number of the value of the table's key at which they are compared.
        """
        relations = cls([], [], [], [], {})
        best, *rivals = table.ranked_labels(value_index)
        for label in rivals:
            claim = comparison.metric_test(table.metric.name, value_index, best, label)
            if claim.outcome == "open":
                relations.open[label] = claim
            elif claim.outcome == "same":
                relations.same.append(label)
            elif claim.outcome == "identical":
                relations.identical.append(label)
            elif table.sign * claim.pair.mean > 0:
                relations.clear.append(label)
            else:
                relations.ahead.append(label)
        return relations


def _rank_by_bound(comparison: Comparison, all_untrained: bool) -> list[str]:
    """State which setting has the lowest bound, and how the others relate to it."""
    best = comparison.cells[0]
    names_by_label = names_with_size(comparison.cells)

    def named(labels: Collection[str]) -> str:
        return _names_or_count([names_by_label[label] for label in labels])

    sentences = [f"{named([best.label])} is lowest: {plus_minus(best.bound)} {comparison.unit}."]
    if comparison.one_seed:
        return [*sentences, "One seed: nothing is settled."]
    relations = Relations.to_best(comparison, comparison.bounds, 0)
    if relations.clear:
        sentences.append(f"Clear of {named(relations.clear)}.")
    if relations.ahead:
        sentences.append(f"On common seeds alone, it is worse than {named(relations.ahead)}.")
    if relations.same:
        sentences.append(f"The same as {named(relations.same)} within {margin_text(comparison)}.")
    if relations.identical:
        sentences.append(f"Equal to {named(relations.identical)} in every digit.")
    if not relations.open:
        return sentences
    if comparison.rule.interim:
        return [*sentences, "Runs are still to come: nothing is settled before they end."]
    not_settled = f"Not settled against {named(relations.open)}"
    if all_untrained or comparison.rule.looks > 1:
        return [*sentences, f"{not_settled}."]
    return [*sentences, f"{not_settled}{_expected_interval_text(relations.open)}."]


def names_with_size(cells: Sequence[Cell]) -> dict[str, str]:
    """Return {label: its name in a sentence}, as "levels (10% more parameters)".

    Sizes are relative to the one that most cells have, or to the smallest of several such sizes.
    """
    sizes = Counter(sorted(cell.parameters for cell in cells if cell.parameters))
    if not sizes:
        return {cell.label: cell.label for cell in cells}
    ((usual, _),) = sizes.most_common(1)
    return {cell.label: cell.label + _size_text(cell.parameters, usual) for cell in cells}


def _size_text(parameters: int | None, usual: int) -> str:
    """Return " (10% more parameters)" than usual; "" for a number that is equal or unknown."""
    if parameters is None:
        return ""
    if parameters == 0:
        return " (nothing was trained)"
    percent = round(100 * (parameters / usual - 1))
    if percent == 0:
        return ""
    more = "more" if percent > 0 else "fewer"
    return f" ({abs(percent):,}% {more} parameters)"


def _expected_interval_text(open_claims: Mapping[str, PairTest]) -> str:
    """Return ": expected interval ± 0.021 with 10 seeds, ± 0.014 with 20"; "" if unknown."""
    if len(open_claims) > NAMED:
        return ""
    texts = []
    for label, claim in open_claims.items():
        n = claim.pair.n
        if math.isnan(claim.pair.p):
            continue
        twice, fourfold = (
            format_number(claim.pair.expected_half_width(seeds, claim.level))
            for seeds in (2 * n, 4 * n)
        )
        setting = f"for {label} " if len(open_claims) > 1 else ""
        texts.append(f"{setting}± {twice} with {2 * n} seeds, ± {fourfold} with {4 * n}")
    return f": expected interval {'; '.join(texts)}" if texts else ""


def ranking(comparison: Comparison, table: MeasureTable) -> str:
    """Describe which setting is significantly best by a metric, and which are as bad as noise."""
    if not table.metric.better:
        return ""
    parts = []
    noisy = noisy_labels(table)
    if noisy:
        parts.append(
            f"no better than pure noise ({format_number(table.noise)}): {join_names(noisy)}"
        )
    if len(table.cells) > 1:
        parts += _rankings_by_value(comparison, table)
        if table is comparison.deciding:
            parts += _floor_text(comparison, table)
    if not parts:
        return ""
    return f"By {table.metric.title} ({table.metric.better}): {'; '.join(parts)}."


def _floor_text(comparison: Comparison, table: MeasureTable) -> list[str]:
    """Advise more samples, not seeds, for undecided settings that are as near as true data."""
    last = len(table.values) - 1
    best = table.ranked_labels(last)[0]
    open_labels = Relations.to_best(comparison, table, last).open
    labels = [label for label in [best, *open_labels] if table.is_at_floor(label, last)]
    if len(labels) < 2:
        return []
    names = _names_or_count(labels)
    if table.key:
        names = f"at {table.values[last]:g}, {names}"
    advice = [f"{names} are as near as true data: raise measures.n rather than the number of seeds"]
    others = [label for label in open_labels if label not in labels]
    if others:
        advice.append(f"more seeds can settle only {_names_or_count(others)}")
    return advice


def noisy_labels(table: MeasureTable) -> list[str]:
    """Return the settings that are no better than pure noise at the last value of the key."""
    return [label for label, spreads in table.spreads.items() if _is_noise(table, spreads[-1])]


def _is_noise(table: MeasureTable, figure: Estimate) -> bool:
    """Return whether a metric is no better than that of pure noise, up to rounding.

    False for samples that are as good as true data: there the metric cannot separate noise from
    data.
    """
    if table.is_as_good_as_data(figure.mean):
        return False
    return table.sign * (figure.mean - table.noise) >= -1e-9 * abs(table.noise)


def _rankings_by_value(comparison: Comparison, table: MeasureTable) -> list[str]:
    """Return "at 5 x0 is clear of v" for each value of the key, or one text if all agree."""
    values_by_text: dict[str, list[str]] = {}
    for place, value in enumerate(table.values):
        values_by_text.setdefault(_best_setting(comparison, table, place), []).append(f"{value:g}")
    if len(values_by_text) == 1:
        return [*values_by_text]
    return [f"at {join_names(values)} {text}" for text, values in values_by_text.items()]


def _best_setting(comparison: Comparison, table: MeasureTable, value_index: int) -> str:
    """Describe the best setting at a value of the key: "x0 is clear of v"."""
    relations = Relations.to_best(comparison, table, value_index)
    parts = []
    if relations.clear:
        parts.append(f"clear of {_names_or_count(relations.clear)}")
    if relations.same:
        names = _names_or_count(relations.same)
        parts.append(f"the same as {names} within {margin_text(comparison)}")
    if relations.identical:
        parts.append(f"equal to {_names_or_count(relations.identical)} in every digit")
    if not parts:
        return "nothing is settled"
    open_labels = [*relations.open, *relations.ahead]
    if open_labels:
        parts.append(f"not settled against {_names_or_count(open_labels)}")
    return f"{table.ranked_labels(value_index)[0]} is {', '.join(parts)}"


def _names_or_count(labels: Collection[str], noun: str = "setting") -> str:
    """Name up to `NAMED` settings, or count more of them: "6 settings"."""
    if len(labels) <= NAMED:
        return join_names(labels)
    return count_noun(len(labels), noun)
