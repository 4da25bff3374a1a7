"""Verdicts on claims with a known truth: how often each verdict is wrong."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.study.fake_runs import BEGIN
from tests.study.simulate import Memory, at_most, bounds
from triptych.run.parsing import Estimate, SampleMeasures
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.claim_settings import figure
from triptych.study.papers.claim import MetricPoint
from triptych.study.published import judge_claims


class Sweep(Memory):
    """Runs in memory with one axis, ``objective=a,b,...``, and a sweep.json.

    The bounds are (cells, seeds, items).
    """

    def __init__(self, table: np.ndarray, diverged: tuple[str, ...] = (), unit: str = "bpd"):
        super().__init__(table)
        for i, run in enumerate(self.runs):
            lost = run.overrides["objective"] in diverged
            end = {"status": "diverged", "test": {}} if lost else {"test": {unit: run.test["bpd"]}}
            self.runs[i] = replace(run, choices={}, **end)
        self.axes = {
            "seed": [str(s) for s in range(table.shape[1])],
            "objective": list("abcdefgh"[: len(table)]),
        }

    def judged(self, **claims: dict[str, Any]):
        made = {name: {"says": f"{name}."} | claim for name, claim in claims.items()}
        node = {"cite": "A. Author 2020", "where": "table 1", "minutes": 1, "claims": made}
        with self.read():
            return judge_claims(
                SweepRecord(paper=node, paper_axes=self.axes, paper_name="it"), self.runs
            )

    def word(self, **claim: Any) -> str:
        (judgement,) = self.judged(one=claim).judgements
        return judgement.word


def drawn(seed: int, *mu: float, seeds: int = 3, items: int = 60, ratio: float = 1.0) -> Sweep:
    return Sweep(bounds(np.random.default_rng(seed), mu, seeds, items, ratio))


@pytest.mark.parametrize("ratio", [0.03, 1.0, 1e6])
@pytest.mark.parametrize(
    "edge, claim",
    [
        ((0.0, 0.05), {"order": ["a", "b"], "by": 0.05}),
        ((0.0, 0.05), {"same": ["a", "b"], "within": 0.05}),
        ((0.0, -0.05), {"same": ["a", "b"], "within": 0.05}),
        ((2.65, 0.0), {"value": {"a": 2.0}, "within": 0.65}),
    ],
    ids=["order", "same above", "same below", "value"],
)
def test_at_the_edge_neither_word_is_said_in_error(edge, claim, ratio):
    """The true difference is exactly at the limit of the claim, just inside or just outside it."""
    n = 400 if ratio == 1e6 else 150  # with seeds alone the test is exact, else on the safe side
    said = {"reproduced": 0, "contradicted": 0, "cannot tell": 0}
    for seed in range(n):
        said[drawn(seed, *edge, ratio=ratio).word(**claim)] += 1
    assert at_most(said["reproduced"], n, 0.05), said
    assert at_most(said["contradicted"], n, 0.05), said
    assert ratio < 1e6 or said["reproduced"] > 0, "5%, not next to none"


def test_over_all_claims_of_a_file():
    """Of six claims at their limit, one is wrongly reproduced as rarely as for a single claim."""
    n, wrong, pairs = 300, 0, list(itertools.combinations("abcd", 2))
    for seed in range(n):
        found = drawn(seed, 0.0, 0.0, 0.0, 0.0, ratio=1e6).judged(
            **{f"{a}{b}": {"order": [a, b]} for a, b in pairs}
        )
        wrong += any(j.word == "reproduced" for j in found.judgements)
    assert at_most(wrong, n, 0.05), wrong / n


def test_a_conjunction_is_only_as_good_as_its_weakest_part():
    """a < b is certain and b < c at its limit: the whole order is reproduced in 5% at most."""
    n = 400
    hits = sum(
        drawn(seed, 0.0, 1.0, 1.0).word(order=["a", "b", "c"]) == "reproduced" for seed in range(n)
    )
    assert at_most(hits, n, 0.05), hits / n


def test_a_conjunction_is_not_contradicted_the_sooner_for_having_many_parts():
    """a is below each of five, all at the limit: one of five tests would reject in over 5%."""
    n, claim = 400, {"order": ["a", ["b", "c", "d", "e", "f"]]}
    hits = sum(
        drawn(seed, *(0.0,) * 6, ratio=1e6).word(**claim) == "contradicted" for seed in range(n)
    )
    assert at_most(hits, n, 0.05), hits / n


@pytest.mark.parametrize("ratio", [0.3, 1e6], ids=["items", "seeds"])
def test_an_interval_says_what_the_word_says(ratio):
    """The interval is within the range if reproduced, outside if contradicted, else neither."""
    words = set()
    for seed in range(30):
        sweep = drawn(seed, 0.0, 0.1, 0.25, 0.26, ratio=ratio)
        claims = {
            "low": {"order": ["a", "b", "c"]},
            "tie": {"same": ["a", "b", "d"], "within": 0.3},
        }
        more = {"far": {"order": ["a", "c"], "by": 0.2}, "back": {"order": ["d", "a"]}}
        figure = {"one": {"value": {"b": 0.12}, "within": 0.1}}
        for j in sweep.judged(**claims, **more, **figure).judgements:
            intervals = [(m.ends[1:], m.contrast) for m in j.measured]
            within = [c.low < low and high < c.high for (low, high), c in intervals]
            without = [high < c.low or c.high < low for (low, high), c in intervals]
            wide = any(m.wide for m in j.measured)
            assert (all(within) and not wide) == (j.word == "reproduced"), j.line
            assert any(without) == (j.word == "contradicted"), j.line
            words.add(j.word)
    assert words == {"reproduced", "contradicted", "cannot tell"}


def test_an_interval_of_two_seeds_may_be_as_wide_as_it_likes():
    table = np.array([[[1.0], [9.0]], [[9.0], [1.0]]])
    claims = {f"tie{i}": {"same": ["a", "b"], "within_factor": 1.2} for i in range(20)}
    (first, *_) = Sweep(table).judged(**claims).judgements
    assert first.word == "cannot tell" and first.deciding.text.endswith("[0.000, ∞]")
    assert first.deciding.ratio == pytest.approx((1, 0, 1e9), abs=1e-6)


def test_a_true_claim_is_reproduced_and_a_planted_false_one_contradicted():
    sweep = drawn(1, 0.0, 0.2, 0.4)
    found = sweep.judged(
        true={"order": ["a", "b", "c"]},
        false={"order": ["c", "a"]},
        far={"order": ["a", "b"], "by": 0.5},
        tie={"same": ["a", "b"], "within": 0.05},
        figure={"value": {"a": 5.0}, "within": 1.0},
    )
    words = {j.claim.name: j.word for j in found.judgements}
    assert words == {
        "true": "reproduced", "false": "contradicted", "far": "contradicted", "tie": "contradicted",
        "figure": "contradicted",
    }  # fmt: skip
    assert found.answer == "Of 5 nearly forced claims: 1 reproduced and 4 contradicted."
    assert " (the least certain of 2 contrasts); p" in found.judgements[0].why
    assert sweep.word(same=["a", "b"], within=0.5) == "reproduced"


# Ten draws: through items and through seeds, with few and with more seeds.
PLANTED = [
    (seed, seeds, ratio) for seed, (seeds, ratio) in enumerate(
        itertools.product((3, 4, 5, 6, 8), (0.3, 1e6))
    )
]  # fmt: skip


@pytest.mark.parametrize("seed, seeds, ratio", PLANTED)
def test_planted_reversal_is_contradicted(seed, seeds, ratio):
    sweep = drawn(seed, 0.2, 0.0, seeds=seeds, ratio=ratio)
    assert sweep.word(order=["a", "b"]) == "contradicted"
    assert sweep.word(order=["b", "a"], by=0.4) == "contradicted"
    assert sweep.word(same=["a", "b"], within=0.05) == "contradicted"


@pytest.mark.parametrize("seed, seeds, ratio", PLANTED)
def test_planted_tie_is_the_same_and_no_difference(seed, seeds, ratio):
    sweep = drawn(seed, 0.0, 0.0, seeds=seeds, ratio=ratio)
    assert sweep.word(order=["a", "b"], by=0.2) == "contradicted"
    assert sweep.word(same=["a", "b"], within=0.2) == "reproduced"


def test_planted_ties_are_orders_as_rarely_as_announced():
    n, words = 200, {"reproduced": 0, "contradicted": 0, "cannot tell": 0}
    for seed in range(n):
        _, seeds, ratio = PLANTED[seed % len(PLANTED)]
        words[drawn(seed, 0.0, 0.0, seeds=seeds, ratio=ratio).word(order=["a", "b"])] += 1
    assert at_most(words["reproduced"], n, 0.05), words
    assert at_most(words["contradicted"], n, 0.05), words


def test_an_identity_is_no_finding_and_what_cannot_be_decided_is_not_tested():
    sweep = drawn(1, 0.0, 0.2)
    labels = {"counts_as": "could fail", "contradicted_by": "b is lower.", "control": "reversal"}
    untestable = {"kind": "trained", "untestable": "Ten steps cannot tell."}
    judgements = sweep.judged(
        sum={"order": ["a", "b"], "kind": "identity"},
        broken={"order": ["b", "a"], "kind": "identity"},
        finding={"order": ["a", "b"], "kind": "exact"},
        large={"order": ["b", "a"]} | untestable | labels,
    )
    assert [j.word for j in judgements.judgements] == [
        "holds",
        "fails",
        "reproduced",
        "not testable here",
    ]
    assert (
        judgements.judgements[3].why == "Ten steps cannot tell." and judgements.judgements[3].p == 1
    )
    assert (
        judgements.answer
        == "Of 1 nearly forced claim: 1 reproduced. Of 2 controls of this project: 1 as claimed "
        "and 1 against. Not testable here: 1; by their figures 1 against."
    )


def test_identity_that_was_not_checked_is_not_counted_as_broken():
    unchecked = {"order": ["a", "b"], "kind": "identity", "untestable": "Ten steps cannot tell."}
    judgements = drawn(1, 0.0, 0.2).judged(sum=unchecked)
    assert judgements.answer == "Not testable here: 1; by their figures 1 as claimed."


@pytest.mark.parametrize(
    "means, tie, effect, word",
    [
        ((0.0, 0.1, 0.2), {"within": 0.3}, {}, "cannot tell"),  # c is .2 above a, an effect
        # The margin is a difference or a ratio: 1.2 is a factor of 1.2 above 1, and a difference of
        # .2.
        ((1.0, 1.1, 1.2), {"within_factor": 1.5}, {}, "cannot tell"),
        ((1.0, 1.1, 1.2), {"within": 0.3}, {"by_factor": 1.01}, "cannot tell"),
        (
            (10.0, 10.1, 30.0),
            {"within": 5.0},
            {"by_factor": 1.5},
            "reproduced",
        ),  # below 20, above log 3
    ],
)
def test_no_margin_is_wider_than_an_effect_that_the_same_table_shows(means, tie, effect, word):
    sweep, tie = drawn(1, *means), {"same": ["a", "b"]} | tie
    assert sweep.word(**tie) == "reproduced"
    judgements = sweep.judged(tie=tie, effect={"order": ["a", "c"]} | effect).judgements
    assert [j.word for j in judgements] == [word, "reproduced"]
    assert ("is wider than an effect in this table" in judgements[0].why) == (word == "cannot tell")


def test_no_margin_is_wider_than_an_identitys_effect():
    sweep = drawn(1, 0.0, 0.2)
    judgements = sweep.judged(
        tie={"same": ["a", "b"], "within": 0.3},
        falls={"order": ["a", "b"], "kind": "identity"},
    ).judgements
    assert [j.word for j in judgements] == ["cannot tell", "holds"]


def test_no_margin_is_wider_than_half_of_the_smaller_figure():
    rng = np.random.default_rng(3)
    table = np.exp(np.log([[0.06], [0.08]]) + 0.01 * rng.normal(size=(2, 5)))[:, :, None].repeat(
        9, 2
    )
    sweep = Sweep(table, unit="distance")
    assert sweep.word(metric="distance", same=["a", "b"], within=0.029) == "reproduced"
    assert sweep.word(metric="distance", same=["a", "b"], within=0.035) == "cannot tell"
    assert sweep.word(metric="distance", same=["a", "b"], within=0.01) == "contradicted"


def test_a_failure_is_a_figure_far_beyond_all_others():
    rng = np.random.default_rng(4)
    table = np.exp(0.1 * rng.normal(size=(3, 6)))[:, :, None].repeat(9, 2)
    table[1] *= 50
    sweep = Sweep(table)
    (judgement,) = sweep.judged(one={"diverges": ["b"], "beyond": 10}).judgements
    assert (judgement.word, judgement.measured[0].text) == ("reproduced", "100% of 6 seeds")
    assert sweep.word(diverges=["b"], beyond=100) == "contradicted"
    assert sweep.word(diverges=["b"]) == "contradicted", "no run ended without a finite figure"
    assert sweep.word(diverges=["a"], beyond=10) == "contradicted"
    sweep.runs = [run for run in sweep.runs if run.overrides["objective"] != "a"]
    assert sweep.word(diverges=["b"], beyond=10) == "cannot tell", "there is a setting to be beyond"


def test_a_failed_run_of_a_setting_that_had_ended_takes_nothing_back():
    sweep = drawn(1, 0.0, 0.2, seeds=6)
    assert sweep.word(order=["a", "b"]) == "reproduced"
    again = replace(
        sweep.runs[0],
        dir=Path("/nowhere/again"),
        status="failed",
        started=BEGIN + timedelta(9),
        test={},
    )
    sweep.runs.append(again)
    assert sweep.word(order=["a", "b"]) == "reproduced"
    sweep.runs.insert(
        0, replace(sweep.runs[0], started=BEGIN + timedelta(8))
    )  # of two results the newest counts
    sweep.runs[1] = replace(sweep.runs[1], test={"bpd": Estimate(99.0, 0.1, 60)})
    assert sweep.word(order=["a", "b"]) == "reproduced"


def changed(change: Callable[[list[Run]], list[Run]]) -> Sweep:
    sweep = drawn(1, 0.0, 0.2)
    sweep.runs = change(sweep.runs)
    return sweep


@pytest.mark.parametrize(
    "sweep, why",
    [
        (drawn(1, 0.0, 0.2, seeds=1), "one seed"),
        (changed(lambda runs: runs[:-1]), "only 2 of 3 runs of b finished"),
        (
            Sweep(bounds(np.random.default_rng(0), (0.0, 0.2), 3, 60, 1.0), ("b",)),
            "b diverged with 3 of 3",
        ),
        (
            changed(lambda runs: [replace(r, fingerprint=r.overrides["objective"]) for r in runs]),
            "the runs have different data",
        ),
        (changed(lambda runs: [*runs[:-1], replace(runs[-1], test={})]), "b has no finite bound"),
        (
            changed(lambda r: [r[0], replace(r[1], test=r[0].test), *r[2:]]),
            "a: seeds 0 and 1 have the same figures to the last digit.",
        ),
        (drawn(1, -9.0, 0.2), "b / a: a ratio needs values above 0"),
        (
            Sweep(np.array([[[1.0], [2.0], [3.0]], [[2.0], [3.0], [4.0]]])),
            "equal values of all",
        ),
    ],
)
def test_figures_that_cannot_be_compared_cannot_tell(sweep, why):
    factor = {"by_factor": 2} if "above 0" in why else {}
    (judgement,) = sweep.judged(one={"order": ["a", "b"]} | factor).judgements
    assert judgement.word == "cannot tell" and why in judgement.why


@pytest.mark.parametrize(
    "seeds, diverged, word",
    [
        (3, ("b",), "cannot tell"),
        (5, ("b",), "reproduced"),
        (5, (), "contradicted"),
        (4, (), "cannot tell"),
    ],
)
def test_most_seeds_diverge_by_the_sign_test(seeds, diverged, word):
    """p = 2^-n if all n seeds diverge, or none: .125, .0625 and .031 for three, four and five."""
    table = bounds(np.random.default_rng(0), (0.0, 0.2), seeds, 60, 1.0)
    assert Sweep(table, diverged).word(diverges=["b"]) == word


def test_a_factor_is_of_the_figures():
    sweep = drawn(3, 1.0, 3.0)
    assert sweep.word(order=["a", "b"], by_factor=2) == "reproduced"
    assert sweep.word(order=["a", "b"], by_factor=4) == "contradicted"
    assert sweep.word(same=["a", "b"], within_factor=2) == "contradicted"
    (judgement,) = sweep.judged(one={"order": ["a", "b"], "by_factor": 2}).judgements
    ratio = float(judgement.measured[0].text.split(" ")[0])
    assert ratio == pytest.approx(3.0, abs=0.3) and judgement.measured[0].accepted == "above 2"


def test_values_of_a_measured_key_are_settings():
    random = np.random.default_rng(0)
    runs = [
        Run(
            dir=Path(f"/nowhere/{s}"), status="finished", overrides={"seed": str(s)}, seed=s,
            test={"bpd": Estimate(1.0, 0.1, 9)},
            measured=SampleMeasures("guidance.scale", (0.0, 1.5), tuple(
                {"recall": 0.9 - 0.2 * i + 0.01 * random.normal()} for i in range(2))),
        ) for s in (1, 2, 3)
    ]  # fmt: skip
    claim = {"says": "It falls.", "metric": "recall", "order": [1.5, 0]}
    node = {"cite": "A", "where": "t", "minutes": 1, "claims": {"falls": claim}}
    axes = {"seed": ["1", "2", "3"], "guidance.scale": ["0", "1.5"]}
    found = judge_claims(SweepRecord(paper=node, paper_axes=axes), runs)
    assert found.judgements[0].word == "reproduced"
    assert [name for name, _ in found.judgements[0].figures] == ["0", "1.5"]


def test_a_claim_is_of_any_figure_that_a_run_has():
    """Terms of the bound are named with its unit, the gap and a user's metric by name alone."""

    def known(**figures: float) -> dict[str, Estimate]:
        return {name: Estimate(mean, 0.1, 9) for name, mean in figures.items()}

    run = Run(
        dir=Path("/nowhere"), status="finished", variance=7.0,
        test=known(bpd=1.0, bpd_prior=2.0, gap=3.0, psnr=4.0), train=known(bpd=5.0), val=known(bpd=6.0),
    )  # fmt: skip
    expected = {
        "bound": 1, "prior": 2, "gap": 3, "psnr": 4, "train_bound": 5, "val_bound": 6, "estimator_variance": 7
    }  # fmt: skip
    assert {name: figure(MetricPoint(name, ()), run) for name in expected} == expected
    assert math.isnan(figure(MetricPoint("ode", ()), run))


@pytest.mark.parametrize(
    "record",
    [{}, {"paper": {"claims": {}}, "paper_axes": {}}, {"paper": {"cite": "A"}, "paper_axes": {"a": 3}},
     {"paper": {"cite": "A", "where": "t", "minutes": 1, "claims": {"a": 1}}, "paper_axes": {"seed": ["1"]}}],
)  # fmt: skip
def test_a_file_that_anybody_may_have_written_is_no_paper(record):
    assert judge_claims(SweepRecord.from_dict(record), []) is None
