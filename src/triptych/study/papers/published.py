"""Verdicts on a paper's claims by a sweep: reproduced, contradicted, cannot tell, or not testable here.

docs/papers.md has the rule: an intersection-union test (Berger 1982) of "reproduced", Bonferroni's of
"contradicted", each at 5% and corrected by Holm's method over all claims of the file.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from triptych.errors import UserError
from triptych.run.parsing import first_line
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.formatting import listed, p_value, quantity
from triptych.study.papers import contrasts
from triptych.study.papers.claim import Axes, Claim
from triptych.study.papers.contrasts import ContrastResult
from triptych.study.papers.paper import read_claims
from triptych.study.statistics import ALPHA, holm
from triptych.study.verdict import find_weakness

Word = Literal["reproduced", "contradicted", "cannot tell", "not testable here", "holds", "fails"]
FINDINGS: tuple[Word, ...] = ("reproduced", "contradicted", "cannot tell", "not testable here")


@dataclass(frozen=True)
class Judgement:
    """A claim, what was measured, and the word. ``p``: corrected, of the word that is nearer."""

    claim: Claim
    measured: tuple[ContrastResult, ...]
    figures: tuple[tuple[str, str], ...]  # setting, mean and standard error
    seeds: int
    items: int
    runs: tuple[Run, ...]
    reproduced: float = 1.0
    contradicted: float = 1.0
    warning: str = ""  # of settings that are no better than a model that knows nothing

    @property
    def word(self) -> Word:
        if self.claim.untestable:
            return "not testable here"
        if self.reproduced <= ALPHA:
            return "holds" if self.is_identity else "reproduced"
        if self.contradicted <= ALPHA:
            return "fails" if self.is_identity else "contradicted"
        return "cannot tell"

    @property
    def is_identity(self) -> bool:
        """True by mathematics here: no finding."""
        return self.claim.kind == "identity"

    @property
    def deciding(self) -> ContrastResult:
        """The contrast that decides: the least sure of those as claimed, or the surest that is not."""
        if self.word in ("contradicted", "fails"):
            return min(self.measured, key=lambda m: m.p_within)
        return max(self.measured, key=lambda m: m.p_not_within)

    @property
    def p(self) -> float:
        """The corrected p of the verdict; where it is none, of the word that comes nearer."""
        return min(self.reproduced, self.contradicted)

    @property
    def why(self) -> str:
        """What decided, in a sentence; first, what may make it worthless."""
        return " ".join(filter(None, (self.warning, self._decided)))

    @property
    def _decided(self) -> str:
        if self.claim.untestable:
            return f"{self.claim.untestable.rstrip('.')}."
        wide = [f"{m.contrast.name} = {m.text}: {m.wide}" for m in self.measured if m.wide]
        for reasons in ([m.trouble for m in self.measured if m.trouble], wide):
            if reasons and self.word == "cannot tell":
                return f"{'; '.join([*dict.fromkeys(reasons)][:3])}."
        over = quantity(self.seeds, "seed") + (f" × {self.items} items" if self.items else "")
        text = f"{self.deciding.contrast.name} = {self.deciding.text}, {self.deciding.accepted} is claimed"
        if self.word == "cannot tell":
            n = sum(m.p_not_within > ALPHA for m in self.measured)
            return f"{text}: {f'{n} open' if n else 'open once corrected'}; {over}."
        if len(self.measured) > 1 and self.word in ("reproduced", "holds"):
            text += f", of {len(self.measured)} contrasts the least sure"
        p = p_value(self.p)
        return f"{text}; {f'p < {p[1:]}' if p[0] == '<' else f'p = {p}'}, {over}."

    @property
    def line(self) -> str:
        return f"{self.word}: {self.claim.says} ({self.why.rstrip('.')})"


@dataclass(frozen=True)
class PaperVerdicts:
    """A paper's claims with a sweep's verdicts; ``changed``: they are not those that it began with."""

    node: Mapping[str, Any]
    name: str
    scale: str
    machine: str
    judgements: tuple[Judgement, ...]
    changed: bool = False

    @property
    def answer(self) -> str:
        """ "Of 3 claims: 2 reproduced and 1 contradicted. 1 of 1 identities hold."."""
        findings = [j.word for j in self.judgements if not j.is_identity]
        known = [f"{findings.count(word)} {word}" for word in FINDINGS if word in findings]
        parts = [f"Of {quantity(len(findings), 'claim')}: {listed(known)}."] if known else []
        if identities := [j.word for j in self.judgements if j.is_identity]:
            parts.append(f"{identities.count('holds')} of {len(identities)} identities hold.")
        return " ".join(parts) or "No claim is made."


def judge_claims(sweep: SweepRecord, runs: Sequence[Run]) -> PaperVerdicts | None:
    """Return the claims that ``sweep.json`` holds, by the runs of the sweep; None where it holds none."""
    if not sweep.paper:
        return None
    try:
        known = {key: [str(value) for value in values] for key, values in sweep.paper_axes.items()}
        name = re.sub(r"[^\w.-]", "", sweep.paper_name)[:100]
        claims = read_claims(sweep.paper, known, sweep.scale)
    except (UserError, TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError):
        return None  # a file that anybody may have written
    seeds = len(known.get("seed", ["1"]))
    judgements = [_judge(claim, known, runs, seeds) for claim in claims]
    corrected = _corrected(judgements)
    shown = [m for j in corrected if j.word == "reproduced" for m in j.measured]
    effects = [m for m in shown if m.contrast.second and math.isinf(m.contrast.high)]
    corrected = _corrected([_within_effects(j, effects) for j in corrected])
    machine = first_line(sweep.machine)
    return PaperVerdicts(sweep.paper, name, sweep.scale, machine, corrected, sweep.claims_changed)


def _corrected(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """Correct p over all claims that are tested, by Holm's method.

    A claim's p of "some contrast is out of its range" is the largest (intersection-union test), of "all are
    within" the smallest times their number (Bonferroni).
    """
    tested = [j.measured for j in judgements if not j.claim.untestable]
    out = holm([max(m.p_not_within for m in measured) for measured in tested])
    within = holm([min(1.0, len(measured) * min(m.p_within for m in measured)) for measured in tested])
    p_values = zip(out, within, strict=True)
    corrected = []
    for j in judgements:
        p, q = (1.0, 1.0) if j.claim.untestable else next(p_values)
        judgement = replace(j, reproduced=p, contradicted=q)
        corrected.append(replace(judgement, measured=_intervals(judgement, len(tested))))
    return tuple(corrected)


def _intervals(j: Judgement, tests: int) -> tuple[ContrastResult, ...]:
    """Return the contrasts with intervals as corrected as the verdict; 95% where nothing is tested."""
    if j.claim.untestable:
        return j.measured
    inside, outside = max(m.p_not_within for m in j.measured), min(m.p_within for m in j.measured)
    tail = ALPHA / (tests * len(j.measured))
    if j.reproduced <= ALPHA and inside:
        tail = ALPHA * inside / j.reproduced
    elif j.contradicted <= ALPHA and outside:
        tail = ALPHA * outside / j.contradicted
    if j.reproduced <= ALPHA:
        return tuple(replace(m, tail=tail) for m in j.measured)
    ends = [math.isfinite(m.contrast.low) + math.isfinite(m.contrast.high) for m in j.measured]
    return tuple(replace(m, tail=tail / n) for m, n in zip(j.measured, ends, strict=True))


def _within_effects(judgement: Judgement, effects: Sequence[ContrastResult]) -> Judgement:
    """Return the judgement without those ties whose margin exceeds an effect on the same metric."""

    def checked(m: ContrastResult) -> ContrastResult:
        same = [e for e in effects if e.contrast.first.metric == m.contrast.first.metric]
        return m.refuse_wide(
            min((e.size(m.contrast.ratio) for e in same), default=math.inf), "an effect in this table"
        )

    return replace(judgement, measured=tuple(map(checked, judgement.measured)))


def _judge(claim: Claim, axes: Axes, runs: Sequence[Run], seeds: int) -> Judgement:
    of = {point: contrasts.runs_of(point, axes, runs) for point in claim.points}
    measured = tuple(contrasts.measure_contrast(contrast, axes, of, seeds) for contrast in claim.contrasts)
    known = [m.pair for m in measured if not m.trouble]
    bounds = {contrasts.point_label(p, axes, claim): of[p] for p in claim.points if p.metric == "bound"}
    return Judgement(
        claim, measured, tuple(contrasts.setting_figures(claim, axes, of)),
        min((pair.n for pair in known), default=0), min((pair.n_items for pair in known), default=0),
        tuple({run.dir: run for runs_of_point in of.values() for run in runs_of_point}.values()),
        warning=find_weakness(bounds).text,
    )  # fmt: skip
