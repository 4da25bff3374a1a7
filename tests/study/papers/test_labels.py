"""What a verdict is worth: labels of the shipped claims, and effects planted in fake runs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.study.simulate import at_most
from tests.test_papers import OTHERWISE
from triptych.config.describe import read_yaml
from triptych.config.source import CONFIGS
from triptych.run.parsing import Estimate, SampleMeasures, format_value
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study import results_page
from triptych.study.claim_counts import Verdict, count_sentences
from triptych.study.claim_settings import KEYS
from triptych.study.papers.labels import claim_labels, counts_as
from triptych.study.papers.paper import claims_at_scale, decisive_keys, read_axes
from triptych.study.published import judge_claims

NODES = {
    scale: {
        paper: claims_at_scale(node["claims"], scale)
        for paper, node in results_page.read_papers(scale).items()
    }
    for scale in ("small", "paper")
}


def labelled(scale: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the labels of each shipped claim at a scale."""
    return {
        (paper, name): labels
        for paper, claims in NODES[scale].items()
        for name, labels in claim_labels(claims, scale).items()
    }


COULD_FAIL = [
    claim
    for claim, labels in labelled("small").items()
    if labels["counts_as"] == "could fail" and not labels["untestable"]
]


def axes_of_file(paper: str) -> dict[str, list[str]]:
    """Return the axes of a paper's sweep, from its file."""
    file = read_yaml(CONFIGS / "paper" / f"{paper}.yaml")
    params = file["hydra"]["sweeper"]["params"]
    values = {key: str(text).split(",") for key, text in params.items()}
    jobs = [[f"{key}={value}"] for key in values for value in values[key]]
    measures = {"n": 1, "over": None, "values": []} | file.get("measures", {})
    return read_axes(jobs, values, measures | {"n": 1})


def ranks(claim: dict[str, Any]) -> dict[str, int]:
    """Return the place of each setting in an order: the lowest figure first."""
    places = {}
    for place, group in enumerate(claim["order"]):
        for name in group if isinstance(group, list) else [group]:
            places[format_value(name)] = place
    return places


# A planted figure lies a tenth within the range that is claimed, or a tenth beyond its edge.
INSIDE, OUTSIDE = 0.9, 1.1
NOISE = 1e-3  # standard deviation of a planted figure, relative to it


def planted_figures(claim: dict[str, Any], plant: str) -> dict[str, float]:
    """Return a figure of each setting, as claimed, tied or reversed."""
    if plant == "tie":
        return dict.fromkeys(ranks(claim), 1.0)
    deviation = {"as claimed": INSIDE, "reversal": OUTSIDE}[plant]
    if "value" in claim:
        [(name, target)] = claim["value"].items()
        return {format_value(name): target + deviation * claim["within"]}
    if "same" in claim:
        figures = {format_value(name): 1.0 for name in claim["same"]}
        *_, last = figures
        factor = claim.get("within_factor", 1.0) ** deviation
        figures[last] = factor + deviation * claim.get("within", 0.0)
        return figures
    if "diverges" in claim:
        return dict.fromkeys(claim["diverges"], claim["beyond"] / deviation)  # others are 1
    places, by_place = ranks(claim), [1.0]
    for _ in range(max(places.values())):
        edge = by_place[-1] * claim.get("by_factor", 1.0) + claim.get("by", 0.0)
        by_place.append(edge / deviation)
    return {name: by_place[place] for name, place in places.items()}


def fake_runs(paper: str, claim: dict[str, Any], plant: str, draw: int) -> list[Run]:
    """Return finished runs of a paper's sweep whose figures hold what is planted."""
    random = np.random.default_rng(draw)
    axes, figures = axes_of_file(paper), planted_figures(claim, plant)
    over = read_yaml(CONFIGS / "paper" / f"{paper}.yaml").get("measures", {}).get("over")
    metric = claim.get("metric", "bound")
    varied = [key for key in axes if len(axes[key]) > 1 and key not in ("seed", over)]
    compared = claim.get("compare") or (varied or [over])[0]
    swept = [key for key in axes if key != over]
    runs = []
    for values in itertools.product(*(axes[key] for key in swept)):
        setting = dict(zip(swept, values, strict=True))
        rows = []
        for value in axes.get(over, [""]):
            place = setting | {over: value}
            row = {}
            for name in figures if compared == "metric" else [metric]:
                chosen = name if compared == "metric" else place[compared]
                figure = figures.get(chosen, 1.0 if "diverges" in claim else 10.0)
                row[name] = figure * (1 + NOISE * random.normal())
            rows.append(row)
        test = {KEYS.get(name, name).format(unit="bpd"): x for name, x in rows[0].items()}
        runs.append(
            Run(
                dir=Path(f"/nowhere/{len(runs)}"), status="finished", seed=int(setting["seed"]),
                overrides=setting, variance=rows[0].get(metric, 0.0),
                test={name: Estimate(x, 0.1, 9) for name, x in test.items()} | {"bpd": Estimate(rows[0].get("bound", 1.0), 0.1, 9)},
                measured=SampleMeasures(over or "", tuple(float(v or 0) for v in axes.get(over, [""])), tuple(rows)),
            )
        )  # fmt: skip
    return runs


def word(paper: str, name: str, plant: str, draw: int = 0) -> str:
    """Return the verdict on a shipped claim with an effect planted."""
    claims = NODES["small"][paper]
    node = {"cite": "A", "where": "t", "minutes": 1, "claims": claims}
    record = SweepRecord(paper=node, paper_axes=axes_of_file(paper), paper_name=paper)
    verdicts = judge_claims(record, fake_runs(paper, claims[name], plant, draw))
    assert verdicts is not None
    (judgement,) = [j for j in verdicts.judgements if j.claim.name == name]
    return f"{judgement.word}{judgement.measured[0].trouble and ': ' + judgement.why}"


def test_at_least_twenty_claims_could_fail():
    assert len(COULD_FAIL) >= 20, COULD_FAIL


@pytest.mark.parametrize("paper, name", COULD_FAIL)
def test_planted_reversal_contradicts_each_claim_that_could_fail(paper, name):
    assert word(paper, name, "reversal") == "contradicted"
    assert word(paper, name, "as claimed") == "reproduced"


def test_planted_ties_reproduce_orders_as_rarely_as_announced():
    orders = [claim for claim in COULD_FAIL if "order" in NODES["small"][claim[0]][claim[1]]]
    words = [word(*claim, "tie", draw) for claim in orders for draw in range(4)]
    assert at_most(words.count("reproduced"), len(words), 0.05), words


def test_each_ingredient_that_is_named_as_control_is_planted():
    planted = {(paper, name) for paper, name, _ in OTHERWISE}
    named = {
        claim for claim, labels in labelled("small").items() if labels["control"] == "ingredient"
    }
    assert named and named <= planted


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_each_claim_says_what_would_contradict_it(scale):
    for (paper, name), labels in labelled(scale).items():
        claim = NODES[scale][paper][name]
        if claim["kind"] == "identity":
            continue
        assert labels["contradicted_by"].endswith("."), (paper, name)
        assert labels["counts_as"] == claim["counts_as"], (paper, name)
        if labels["counts_as"] != "could fail":
            assert labels["reason"].endswith("."), (paper, name)
        if labels["relabelled"]:
            assert labels["relabelled"].startswith("2026-"), (paper, name)


def test_a_claim_without_a_control_is_nearly_forced():
    claim = {"kind": "trained", "counts_as": "could fail", "contradicted_by": "It falls."}
    assert counts_as(claim) == "nearly forced"
    assert counts_as(claim | {"control": "reversal"}) == "could fail"
    assert counts_as({"kind": "identity"}) == "control"


def test_labels_affect_nothing_that_decides():
    claim = {"says": "a", "order": ["a", "b"]}
    words = {"counts_as": "could fail", "contradicted_by": "c.", "control": "reversal"}
    words |= {"reason": "r.", "relabelled": "2026-12-01, r.", "untestable": "u"}
    assert decisive_keys({"it": claim | words}) == decisive_keys({"it": claim})


def test_bits_and_samples_of_the_same_networks_are_judged_alike():
    bits = {"kind": "trained", "order": ["a", "b"], "untestable": "few steps"}
    samples = {"kind": "trained", "order": ["b", "a"], "metric": "frechet_distance"}
    others = samples | {"order": ["c", "a"]}
    claims = {"bits": bits, "samples": samples, "others": others}
    labels = claim_labels(claims, "small")
    reasons = {name: label["untestable"] for name, label in labels.items()}
    assert reasons["samples"] == "its networks are those of bits, and no further trained"
    assert not reasons["others"]
    assert not any(label["untestable"] for label in claim_labels(claims, "paper").values())


@pytest.mark.parametrize(
    "change, undecidable",
    [
        ({}, True),
        ({"kind": "exact"}, False),
        ({"compare": "sampler.steps"}, False),
        ({"same": None, "order": ["a", "b"]}, False),
    ],
)
def test_a_tie_of_networks_trained_apart_is_undecidable(change, undecidable):
    claim = {"kind": "trained", "same": ["a", "b"], "compare": "objective"} | change
    claim = {key: value for key, value in claim.items() if value}
    assert bool(claim_labels({"it": claim}, "small")["it"]["untestable"]) == undecidable


def test_the_counts_keep_what_could_fail_apart():
    verdicts = [
        Verdict("could fail", "reproduced", "as claimed"),
        Verdict("could fail", "contradicted", "against"),
        Verdict("nearly forced", "reproduced", "as claimed"),
        Verdict("control", "holds", "as claimed"),
        Verdict("could fail", "not testable here", "against"),
        Verdict("could fail", "to run again", "neither"),
    ]
    assert count_sentences(verdicts) == [
        "Of 2 claims that could fail: 1 reproduced and 1 contradicted.",
        "Of 1 nearly forced claim: 1 reproduced.",
        "Of 1 control of this project: 1 as claimed.",
        "Not testable here: 1; by their figures 1 against.",
        "To run again: 1.",
    ]


def test_what_the_setting_forces_is_counted_in_one_place_whichever_way():
    verdicts = [
        Verdict("nearly forced", "reproduced", "as claimed"),
        Verdict("nearly forced", "not testable here", "against"),
        Verdict("could fail", "not testable here", "as claimed"),
    ]
    assert count_sentences(verdicts) == [
        "Of 2 nearly forced claims: 1 reproduced and 1 against.",
        "Not testable here: 1; by their figures 1 as claimed.",
    ]
