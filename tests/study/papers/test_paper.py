"""A paper's claims are read before any run; undecidable ones are refused in one line."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.refusal import refused, refused_if
from triptych.config.describe import read_yaml
from triptych.config.source import CONFIGS
from triptych.errors import UserError
from triptych.study.papers.claim import read_claim
from triptych.study.papers.paper import check_claimed_metrics, decisive_keys, read_axes, read_claims
from triptych.study.render import markdown

AXES = {
    "seed": ["1", "2", "3"],
    "objective": ["x0", "epsilon", "v"],
    "bound.steps": ["10", "100", "null"],
}
CONFIG: dict[str, Any] = {"measures": {"n": 0}, "metrics": {"switched_off": None}}


def node(**claim: Any) -> dict[str, Any]:
    known = {"says": "It is so."} | claim
    return {"cite": "A. Author 2020", "where": "table 1", "minutes": 1, "claims": {"one": known}}


def contrasts(**claim: Any):
    return read_claims(node(**claim), AXES)[0].contrasts


def test_order_claim_gives_contrasts_at_each_value_of_other_axes():
    found = contrasts(compare="bound.steps", order=[None, 100, 10], at={"objective": "v"}, by=0.1)
    assert [c.name for c in found] == ["steps=100 − continuous time", "steps=10 − steps=100"]
    assert all((c.low, c.high) == (0.1, math.inf) for c in found)
    assert dict(found[0].first.setting) == {"bound.steps": "100", "objective": "v"}
    everywhere = contrasts(compare="objective", order=["v", ["x0", "epsilon"]])
    assert len(everywhere) == 2 * 3 and everywhere[0].name == "x0 − v (steps=10)"


def test_same_claim_gives_contrast_of_each_pair():
    found = contrasts(
        compare="objective", same=["x0", "epsilon", "v"], within=0.02, at={"bound.steps": 10}
    )
    assert [c.name for c in found] == ["epsilon − x0", "v − x0", "v − epsilon"]
    assert all((c.low, c.high) == (-0.02, 0.02) for c in found)
    (one,) = contrasts(
        compare="objective", same=["x0", "v"], within_factor=2, at={"bound.steps": 10}
    )
    assert one.ratio and one.name == "v / x0"
    assert (one.low, one.high) == pytest.approx((-math.log(2), math.log(2)))


def test_value_claim_gives_range_of_one_setting():
    (one,) = contrasts(compare="objective", value={"v": 2.65}, within=0.05, at={"bound.steps": 10})
    assert not one.is_pair and (one.low, one.high) == pytest.approx((2.60, 2.70))
    (one,) = contrasts(
        compare="objective", value={"v": -2.0}, within_factor=2, at={"bound.steps": 10}
    )
    assert (one.low, one.high) == (-4.0, -1.0)


def test_claim_compares_metrics_as_axis():
    found = contrasts(
        compare="metric", order=["ode", "ode_bound"], at={"objective": "v", "bound.steps": 10}
    )
    assert [[point.metric for point in c.compared] for c in found] == [["ode_bound", "ode"]]


@pytest.mark.parametrize(
    "claim, said",
    [
        ({"order": ["x0", "v"]}, "one.compare: missing; use one of objective, bound.steps, metric"),
        ({"compare": "schedule", "order": ["x0", "v"]}, "compare=schedule: not an axis of the sweep"),
        ({"compare": "objective", "order": ["x0", "velocity"]},
         "order=velocity: not in the sweep; choose a value of "
         "objective from x0, epsilon, v"),
        ({"compare": "objective", "order": ["x0"]}, "order=['x0']: nothing to compare; list more settings"),
        ({"compare": "objective"}, "has 0 statistics; use exactly one of order, same, value, div"),
        ({"compare": "objective", "order": ["x0", "v"], "diverges": ["v"]}, "has 2 statistics; use exactly one of order"),
        ({"compare": "objective", "order": ["x0", "v"], "within": 1.0}, "order cannot use within; use"),
        ({"compare": "objective", "same": ["x0", "v"]}, "same needs a tolerance"),
        ({"compare": "objective", "same": ["x0", "v"], "within": 0}, "within=0: must be a number above 0"),
        ({"compare": "objective", "value": {"v": "low"}, "within": 1.0}, "value.v='low': must be a number"),
        ({"compare": "objective", "order": ["x0", "v"], "at": {"bound.step": 1}}, "did you mean bound.st"),
        ({"compare": "objective", "diverges": []}, "diverges=[]: nothing to compare; list more settings"),
    ],
)  # fmt: skip
def test_undecidable_claim_is_refused(claim, said):
    assert refused(lambda: read_claims(node(**claim), AXES), said).startswith("paper.claims.one")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"where": None}, "paper.where: required key is missing"),
        ({"minutes": 0}, "paper.minutes=0: must be a number above 0"),
    ],
)
def test_paper_requires_where_minutes_and_claims(change, said):
    asked = {k: v for k, v in (node(order=["x0", "v"]) | change).items() if v is not None}
    with pytest.raises(UserError, match=said.replace("{", r"\{")):
        read_claims(asked, AXES)


@pytest.mark.parametrize(
    "metric, config, said",
    [
        ("bond", {}, "metric=bond: no run of this sweep records it; did you mean bound?"),
        ("recall", {}, "sample metrics need measures.n=1000"),
        ("recall", {"measures": {"n": 100}}, ""),
        ("ode", {}, ""),
        ("psnr", {}, "metric=psnr: no run of this sweep records it"),
        ("psnr", {"metrics": {"psnr": {}}}, ""),
    ],
)
def test_claim_metric_not_measured_by_sweep_is_refused(metric, config, said):
    claims = read_claims(node(compare="objective", order=["x0", "v"], metric=metric), AXES)
    refused_if(lambda: check_claimed_metrics(claims, CONFIG | config, AXES), said)


def test_samples_are_drawn_if_an_axis_sets_their_number():
    claims = read_claims(node(compare="objective", order=["x0", "v"], metric="recall"), AXES)
    check_claimed_metrics(claims, CONFIG, AXES | {"measures.n": ["9", "99"]})
    repeats = AXES | {"measures.repeats": ["1", "2"]}
    refused(
        lambda: check_claimed_metrics(claims, CONFIG, repeats), "no run of this sweep records it"
    )


def test_read_claims_skips_claims_of_other_scale():
    both = node(compare="objective", order=["x0", "v"])
    both["claims"]["two"] = {
        "says": "2",
        "scale": "paper",
        "compare": "objective",
        "order": ["v", "x0"],
    }
    assert [c.name for c in read_claims(both, AXES)] == ["one"]
    assert [c.name for c in read_claims(both, AXES, scale="paper")] == ["one", "two"]


def test_axes_of_includes_grid_and_measured_values():
    jobs = [["setting=a", "model=vae", "seed=1"], ["setting=b", "model=vae", "seed=1"]]
    measures = {"n": 10, "over": "guidance.scale", "values": [0, 1.5]}
    found = read_axes(jobs, ["setting", "seed"], measures)
    assert found == {"setting": ["a", "b"], "seed": ["1"], "guidance.scale": ["0", "1.5"]}


def test_decisive_keys_ignore_wording_and_other_scales():
    one = node(order=["x0", "v"], published={"x0": 1.0})["claims"]
    assert decisive_keys(one) == {"one": {"order": ["x0", "v"]}}
    both = one | {"large": {"says": "2", "scale": "paper", "order": ["v", "x0"]}}
    both["one"] = both["one"] | {"scale": "small"}
    assert decisive_keys(both) == decisive_keys(one), (
        "what is claimed at another scale decides nothing here"
    )
    assert decisive_keys(both, "paper") == {"large": {"order": ["v", "x0"]}}


def test_results_page_of_paper_names_condition_that_reverses_finding():
    docs = Path(__file__).parents[3] / "docs"
    table = (docs / "papers.md").read_text()
    for file in sorted((CONFIGS / "paper").glob("*.yaml")):
        assert f"| `{file.stem}` |" in table, "what was checked, in which text"
        claims = read_yaml(file)["paper"]["claims"].items()
        if (page := docs / "results" / f"{file.stem}.md").exists():
            text = page.read_text()
            for name, claim in claims:
                if claim["kind"] != "identity" and claim.get("scale") != "paper":
                    assert markdown(f"- {name} would reverse with {claim['otherwise']}.") in text


def test_run_config_contains_no_paper_claims(prepared):
    assert "paper" not in prepared("paper=vdm_steps", tiny=False).config()


def test_override_value_is_compared_as_yaml():
    """Values are compared as in YAML: 1 is not true."""
    axes = {"a": ["1e-3", "true", "null", "1.0", "x0"]}
    typed = [("1e-3", 0.001), ("true", True), ("null", None), ("1.0", 1), ("x0", "x0")]
    for text, value in typed:
        claim = {"says": "It is so.", "value": {value: 2.0}, "within": 1.0}
        [contrast] = read_claim("one", claim, axes).contrasts
        assert dict(contrast.first.setting) == {"a": text}
    claim = {"says": "It is so.", "value": {True: 2.0}, "within": 1.0}
    refused(lambda: read_claim("one", claim, {"a": ["1", "0"]}), "value=true: not in the sweep")
