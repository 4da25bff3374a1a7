"""Verdicts on a paper's claims: reproduced, contradicted, cannot tell, or not testable here.

docs/papers.md has the rule: an intersection-union test (Berger 1982) of "reproduced", Bonferroni's
of "contradicted", each at 5% and corrected by Holm's method over all claims of the file.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from triptych.errors import UserError
from triptych.run.parsing import first_line
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.claim_counts import Outcome, Verdict, count_sentences
from triptych.study.claim_settings import read_settings
from triptych.study.contrasts import ContrastResult, measure_contrast
from triptych.study.formatting import count_noun, p_value
from triptych.study.papers.claim import Axes, Claim
from triptych.study.papers.paper import read_claims
from triptych.study.statistics import ALPHA, holm
from triptych.study.verdict import find_weakness

Word = Literal["reproduced", "contradicted", "cannot tell", "not testable here", "holds", "fails"]
# Errors that a malformed or untrusted record can raise.
MALFORMED = (
    UserError, TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError
)  # fmt: skip

# {outcome: verdict}, for findings and for identities, which hold by mathematics
FINDING: dict[Outcome, Word] = {
    "as claimed": "reproduced", "against": "contradicted", "neither": "cannot tell",
}  # fmt: skip
IDENTITY: dict[Outcome, Word] = FINDING | {"as claimed": "holds", "against": "fails"}


@dataclass(frozen=True)
class Judgement:
    """A claim, its measured contrasts, and the corrected p of "reproduced" and "contradicted"."""

    claim: Claim
    measured: tuple[ContrastResult, ...]
    figures: tuple[tuple[str, str], ...]  # pairs: setting, mean with standard error
    seeds: int
    items: int
    runs: tuple[Run, ...]
    reproduced: float = 1.0
    contradicted: float = 1.0
    warning: str = ""  # names settings that are no better than a trivial model

    @property
    def word(self) -> Word:
        """The verdict."""
        if self.claim.untestable:
            return "not testable here"
        if self.claim.kind == "identity":
            return IDENTITY[self.outcome]
        return FINDING[self.outcome]

    @property
    def outcome(self) -> Outcome:
        """The outcome by corrected p, or by uncorrected p if the claim is not testable here."""
        likely = self.reproduced
        unlikely = self.contradicted
        if self.claim.untestable:
            likely = self.p_not_within
            unlikely = self.p_any_beyond
        if likely <= ALPHA:
            return "as claimed"
        if unlikely <= ALPHA:
            return "against"
        return "neither"

    @property
    def deciding(self) -> ContrastResult:
        """The contrast that decides the verdict.

        If the claim is contradicted, it is the contrast that is most surely outside its range; else
        the one that is least surely inside.
        """
        if self.word in ("contradicted", "fails"):
            return min(self.measured, key=lambda m: m.p_within)
        return max(self.measured, key=lambda m: m.p_not_within)

    @property
    def p_not_within(self) -> float:
        """The largest p of "this contrast is out of its range": small where all are as claimed."""
        return max(m.p_not_within for m in self.measured)

    @property
    def p_within(self) -> float:
        """The smallest p of "this contrast is in its range": small where one is not as claimed."""
        return min(m.p_within for m in self.measured)

    @property
    def p_any_beyond(self) -> float:
        """p of "all contrasts are in their ranges", by Bonferroni's method."""
        return min(1.0, len(self.measured) * self.p_within)

    @property
    def p(self) -> float:
        """The corrected p of the verdict; if undecided, the smaller one of both verdicts."""
        return min(self.reproduced, self.contradicted)

    @property
    def why(self) -> str:
        """The reason for the verdict in a sentence, after any warning."""
        return " ".join(filter(None, (self.warning, self._reason)))

    @property
    def _reason(self) -> str:
        """The reason for the verdict without the warning."""
        if self.claim.untestable:
            return f"{self.claim.untestable.rstrip('.')}."
        if self.word == "cannot tell":
            return self._undecided_reason
        text = self._deciding_text
        if len(self.measured) > 1 and self.outcome == "as claimed":
            text += f" (the least certain of {len(self.measured)} contrasts)"
        p = f"p = {p_value(self.p)}"
        if self.p < 1e-4:
            p = "p < 0.0001"
        return f"{text}; {p}, {self._data_basis}."

    @property
    def _undecided_reason(self) -> str:
        """The reason why nothing is decided: missing runs, too wide a margin, or the p-values."""
        reasons = [m.trouble for m in self.measured if m.trouble]
        if not reasons:
            reasons = [f"{m.contrast.name} = {m.text}: {m.wide}" for m in self.measured if m.wide]
        if reasons:
            return f"{'; '.join([*dict.fromkeys(reasons)][:3])}."
        n = sum(m.p_not_within > ALPHA for m in self.measured)
        count = f"{n} undecided"
        if not n:
            count = "undecided after the correction"
        return f"{self._deciding_text}: {count}; {self._data_basis}."

    @property
    def _deciding_text(self) -> str:
        """The measured value and the claimed range of the deciding contrast."""
        deciding = self.deciding
        return f"{deciding.contrast.name} = {deciding.text}, {deciding.accepted} is claimed"

    @property
    def _data_basis(self) -> str:
        """The numbers of seeds and of items: "3 seeds × 60 items"."""
        seeds = count_noun(self.seeds, "seed")
        if not self.items:
            return seeds
        return f"{seeds} × {self.items} items"

    @property
    def line(self) -> str:
        """The verdict, the claim and the reason in one line."""
        return f"{self.word}: {self.claim.says} ({self.why.rstrip('.')})"


@dataclass(frozen=True)
class PaperVerdicts:
    """A sweep's verdicts on a paper's claims.

    ``node``: the sweep's recorded node ``paper``. ``name``: the name of the paper's file.
    ``changed``: whether the claims were changed after the sweep had results.
    """

    node: Mapping[str, Any]
    name: str
    scale: str
    machine: str
    judgements: tuple[Judgement, ...]
    changed: bool = False

    @property
    def answer(self) -> str:
        """The counts of verdicts: "Of 3 claims that could fail: 2 reproduced ..."."""
        verdicts = [Verdict(j.claim.counts_as, j.word, j.outcome) for j in self.judgements]
        return " ".join(count_sentences(verdicts))


def judge_claims(sweep: SweepRecord, runs: Sequence[Run]) -> PaperVerdicts | None:
    """Judge the claims in a sweep's record by its runs; None if it has none, or malformed ones."""
    if not sweep.paper:
        return None
    try:
        axes = {key: list(map(str, values)) for key, values in sweep.paper_axes.items()}
        claims = read_claims(sweep.paper, axes, sweep.scale)
    except MALFORMED:  # the file may be untrusted
        return None
    judgements = _correct_p_values([_judge(claim, axes, runs) for claim in claims])
    judgements = _correct_p_values(_without_wide_margins(judgements))
    return PaperVerdicts(
        node=sweep.paper,
        name=re.sub(r"[^\w.-]", "", sweep.paper_name)[:100],
        scale=sweep.scale,
        machine=first_line(sweep.machine),
        judgements=judgements,
        changed=sweep.claims_changed,
    )


def _judge(claim: Claim, axes: Axes, runs: Sequence[Run]) -> Judgement:
    """Measure a claim's contrasts, without the correction of p, which all claims share."""
    settings = read_settings(claim, axes, runs)
    seeds = len(axes.get("seed", ["1"]))
    measured = tuple(measure_contrast(contrast, settings, seeds) for contrast in claim.contrasts)
    pairs = [m.pair for m in measured if not m.trouble]
    used = chain.from_iterable(settings[point].runs for point in claim.points)
    of_bound = [settings[point] for point in claim.points if point.metric == "bound"]
    return Judgement(
        claim=claim,
        measured=measured,
        figures=tuple((setting.label, setting.text) for setting in settings.values()),
        seeds=min((pair.n for pair in pairs), default=0),
        items=min((pair.n_items for pair in pairs), default=0),
        runs=tuple({run.dir: run for run in used}.values()),
        warning=find_weakness({setting.label: setting.runs for setting in of_bound}).text,
    )


def _correct_p_values(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """Correct p over all claims that are tested, by Holm's method.

    A claim's p of "some contrast is out of its range" is the largest one of its contrasts
    (intersection-union test). Its p of "all are within" is the smallest one times their number
    (Bonferroni).
    """
    tested = [j for j in judgements if not j.claim.untestable]
    reproduced = holm([j.p_not_within for j in tested])
    contradicted = holm([j.p_any_beyond for j in tested])
    corrected = {j.claim.name: j for j in judgements}
    for j, p, q in zip(tested, reproduced, contradicted, strict=True):
        judgement = replace(j, reproduced=p, contradicted=q)
        corrected[j.claim.name] = replace(
            judgement, measured=_with_corrected_intervals(judgement, len(tested))
        )
    return tuple(corrected.values())


def _with_corrected_intervals(j: Judgement, tests: int) -> tuple[ContrastResult, ...]:
    """Return the contrasts of a tested claim, with intervals corrected like the verdict."""
    tail = ALPHA / (tests * len(j.measured))
    if j.reproduced <= ALPHA:
        if j.p_not_within:
            tail = ALPHA * j.p_not_within / j.reproduced
        return tuple(replace(m, tail=tail) for m in j.measured)
    if j.contradicted <= ALPHA and j.p_within:
        tail = ALPHA * j.p_within / j.contradicted
    return tuple(replace(m, tail=tail / m.contrast.n_ends) for m in j.measured)


def _without_wide_margins(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Return the judgements, with ties of too wide a margin no longer reproduced.

    A margin is too wide if it exceeds a reproduced effect on the same metric, identities included.
    """
    as_claimed = ("reproduced", "holds")
    reproduced = chain.from_iterable(j.measured for j in judgements if j.word in as_claimed)
    effects = [m for m in reproduced if m.contrast.is_pair and math.isinf(m.contrast.high)]
    checked = []
    for j in judgements:
        measured = []
        for m in j.measured:
            metric = m.contrast.first.metric
            ratio = m.contrast.ratio
            sizes = [e.size(ratio) for e in effects if e.contrast.first.metric == metric]
            least = min(sizes, default=math.inf)
            measured.append(m.refuse_wide(least, "an effect in this table"))
        checked.append(replace(j, measured=tuple(measured)))
    return checked
