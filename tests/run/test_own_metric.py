"""A metric of samples in a package outside the clone: computed, ranked, plotted and exported.

A published claim can be about it, too.
"""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.refusal import refused
from triptych.data.batch import Split
from triptych.models.metric import Samples
from triptych.run.execute import execute
from triptych.run.reference import SampleReference, user_sample_metrics
from triptych.study.render import write_report

from ..study.fake_runs import make_run
from .test_measures_of_runs import RING

RADIUS = """
from triptych.declare import declared
from triptych.models.metric import OfSamples

@declared("metrics")
class Radius(OfSamples):
    title, unit, higher_is_better = "error of the mean radius", "units", False

    def figure(self, samples):
        return (samples.x.norm(dim=1).mean() - samples.true.norm(dim=1).mean()).abs().item()

class Vector(Radius):
    def figure(self, samples):
        return samples.x.std(0)

class Classified(Radius):
    def figure(self, samples):
        return samples.features.mean().item()

class Sorted(Radius):
    def figure(self, samples):
        return samples.labels.bincount(minlength=3).double().std()
"""
TOLD = {"radius": {"title": "error of the mean radius", "unit": "units", "better": "lower"}}
MEASURED = ("+metrics.radius._target_=metric_lab.Radius", "measures.n=400", "measures.repeats=1")


@pytest.fixture
def lab(trusting):
    return trusting("metric_lab", RADIUS)


def test_it_is_taken_of_the_oracles_samples_which_are_at_the_floor_if_the_sampler_is_good(
    prepared, lab
):
    """One step gives a wrong mean radius; pure noise has its own radius; true sets agree."""
    more = (
        "sampler=dpm_solver",
        "measures.n=1000",
        "measures.over=evaluations",
        "measures.values=[1,40]",
    )
    summary = execute(prepared(*RING, *MEASURED, *more, path="own"))
    assert summary["steps"] == 0 and summary["parameters"] == 0
    assert abs(summary["test"]["gap"]["mean"]) < 1e-3  # no denoiser has a better bound
    few, many = summary["measures_over"]["rows"]
    assert (few["value"], few["evaluations"], many["evaluations"]) == (1, 1, 40)
    about, (few, many) = summary["measured"], (few["measures"], many["measures"])
    floor = about["floor"]["sliced_wasserstein"]
    assert many["sliced_wasserstein"]["mean"] < 2 * floor["median"] and many["radius"]["n"] == 1000
    assert few["sliced_wasserstein"]["mean"] > 2 * floor["high"]
    assert few["radius"]["mean"] > many["radius"]["mean"]
    for name in ("radius", "sliced_wasserstein"):
        assert about["noise"][name] > about["floor"][name]["high"]
    assert about["metrics"] == TOLD
    json.dumps(summary.record, allow_nan=False)


def test_what_is_recorded_is_ranked_drawn_exported_and_claimable(tmp_path):
    """Our code does not know the metric: the report has everything from the runs."""
    for seed in (1, 2, 3):
        for objective, radius in (("x0", 0.1 + seed / 1000), ("v", 0.5 + seed / 2000)):
            taken = {"radius": {"mean": radius, "stderr": 0.01, "n": 400}}
            about = {"n": 400, "reference": "400 points", "floor": {}, "metrics": TOLD}
            bound = 1.9 + seed / 90 * len(objective)
            make_run(tmp_path, objective, seed, bound, measures=taken, measured=about)
    claim = {"says": "x0 is nearer.", "metric": "radius", "order": ["x0", "v"]}
    node = {
        "cite": "A. Author (2020)",
        "where": "Table 1",
        "minutes": 1,
        "claims": {"nearer": claim},
    }
    axes = {"objective": ["x0", "v"], "seed": ["1", "2", "3"]}
    (tmp_path / "sweep.json").write_text(
        json.dumps({"paper": node, "paper_axes": axes, "paper_name": "own"})
    )
    report = write_report(tmp_path)
    ranked = "By error of the mean radius (lower is better): x0 is clear of v."
    assert ranked in report.html.read_text()
    assert "error of the mean radius, units" in report.html.read_text()
    with open(report.csv, newline="") as file:
        assert {float(row["samples/radius"]) for row in csv.DictReader(file)} >= {0.101, 0.5005}
    (judgement,) = report.study.published.judgements
    assert judgement.word == "reproduced", judgement.why


SET = SimpleNamespace(shape=(2,), num_classes=4, splits={"train": Split(torch.randn(40, 2))})


def test_a_change_in_place_is_not_seen_by_other_metrics(lab):
    from metric_lab import Radius

    class Far(Radius):
        def figure(self, samples):
            return samples.x.mul_(0).add_(samples.true.add_(9)).mean().item()

    reference = SampleReference(SET, 16, 0, {"a": Far(), "b": Radius()})
    samples = Samples(torch.ones(16, 2), torch.zeros(16, 2))
    assert reference._compute_user_metrics(samples) == {"a": 9, "b": pytest.approx(2**0.5)}


def test_a_mistake_is_refused_before_training(lab):
    from metric_lab import Classified, Radius, Vector

    def tried(metric):
        return SampleReference(SET, 64, 0, {"x": metric}).try_user_metrics()

    with pytest.raises(ValueError, match="only one element"):
        tried(Vector())
    refused(lambda: tried(Classified()), "metrics.x: AttributeError: 'NoneType' object")
    assert not tried(Radius())


def test_it_is_tried_on_classes_and_features_where_samples_will_have_them(lab):
    from metric_lab import Classified, Sorted

    refused(
        SampleReference(SET, 64, 0, {"x": Sorted()}).try_user_metrics,
        "metrics.x: AttributeError: 'NoneType'",
    )
    reference = SampleReference(SET, 64, 0, {"x": Sorted(), "y": Classified()})
    reference.classifier = SimpleNamespace(features_and_logits=lambda x: (x, x))
    assert not reference.try_user_metrics(labelled=True)


def test_a_mean_over_a_set_without_a_value_is_none(prepared, lab, monkeypatch):
    import metric_lab

    values = iter(
        [*range(6), float("nan"), 1.0]
    )  # of five true sets, of noise, of two sets of samples
    monkeypatch.setattr(metric_lab.Radius, "figure", lambda *_: next(values))
    summary = execute(prepared(*RING, *MEASURED, "measures.n=8", "measures.repeats=2", path="own"))
    assert summary["measures"]["radius"]["mean"] is None


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("'far'", "could not convert string to float: 'far'"),
        ("sys.exit(0)", r"sys.exit\(0\) ended the run"),
    ],
)
def test_what_is_no_figure_fails_the_run(prepared, lab, monkeypatch, figure, words):
    """The same is true of an exit, which would end the command as if the run had finished."""
    import metric_lab

    monkeypatch.setattr(
        metric_lab.Radius, "figure", eval(f"lambda _, samples: {figure}", {"sys": sys})
    )
    run = prepared(*RING, *MEASURED, path="own")
    with pytest.raises((ValueError, RuntimeError), match=words):
        execute(run)
    assert run.summary().status == "failed" and run.checkpoints()


def test_name_of_built_in_metric_is_refused(prepared, lab):
    config = prepared(*RING, *MEASURED, "+metrics.fid._target_=metric_lab.Radius").config()
    refused(lambda: user_sample_metrics(config), "metrics.fid: a built-in metric of samples")


@pytest.mark.parametrize("higher", ["lower", [True], 1])
def test_unknown_direction_is_refused(prepared, lab, monkeypatch, higher):
    import metric_lab

    monkeypatch.setattr(metric_lab.Radius, "higher_is_better", higher)
    config = prepared(*RING, *MEASURED).config()
    words = f"metrics.radius: higher_is_better={higher!r}; must be True, False or None"
    refused(lambda: user_sample_metrics(config), words)
