"""One class writes and reads ``summary.json``; entries that it does not describe are kept."""

import json

import pytest

from tests.study.fake_runs import metrics
from triptych.models.diffusion import Diffusion
from triptych.run.execute import execute
from triptych.run.parsing import parse_estimates
from triptych.run.provenance_file import Provenance
from triptych.run.read import read_run
from triptych.run.result import Result, split_line

BOUND = metrics(1.5)


def test_result_round_trips_through_summary_json(tmp_path):
    start = Provenance(overrides=("seed=2",), choices={"data": "digits"})
    record = Result.from_run(start, "finished", seed=2, test=BOUND).record
    assert record["schema"] == 1 and record["samples"] is None and "val" not in record
    (tmp_path / "summary.json").write_text(json.dumps(record))
    run = read_run(tmp_path)
    assert (run.status, run.seed, run.test["bpd"].mean) == ("finished", 2, 1.5)
    assert run.choices == {"data": "digits"} and run.record == record


def test_user_panels_add_curves_but_cannot_replace_figures(prepared, monkeypatch):
    curve = {"gamma": [0.0, 1.0], "share": [0.5, 0.25]}
    mine = lambda model: {"shares": curve, "test": {}}  # noqa: E731
    monkeypatch.setattr(Diffusion, "panels", mine)
    result = execute(run := prepared("experiment=ring", "data.train_size=64", "data.test_size=64"))
    assert run.summary()["shares"] == curve and result.status == "finished" and result.test


@pytest.mark.parametrize(
    ("record", "words"),
    [({"schema": 2}, "schema=2"), ({"schema": 1, "status": "x"}, "status='x'")],
)
def test_result_refuses_unknown_schema_or_status(record, words):
    with pytest.raises(ValueError, match=words):
        Result.from_json(record)


def figure(mean, stderr=0.02, n=297):
    return {"mean": mean, "stderr": stderr, "n": n}


def line_of(figures) -> str:
    return split_line(parse_estimates("test", figures))


def test_figures_line_keeps_digits_of_small_errors():
    test = metrics(0.3, "nats_per_dim") | {"gap": figure(1.32e-5, 2.1e-6)}
    assert "0.0000132 ± 0.0000021 above the data's entropy" in line_of(test)
    assert "0.0771 ± 0.0012 above" in line_of(test | {"gap": figure(0.07712, 0.00123)})


def test_figures_line_reports_ode_on_its_own_items():
    ode = {"bpd_ode": figure(1.95, n=64), "bpd_ode_bound": figure(1.88, n=64)}
    line = line_of(metrics(1.89) | ode)
    assert "by the probability-flow ODE 1.9500 ± 0.0200 on 64 of these items" in line
    assert "of these items, where the bound is 1.8800 ± 0.0200" in line


def test_bound_without_terms_is_refused():
    assert parse_estimates("test", BOUND)["bpd"].mean == 1.5
    for part in ("prior", "diffusion"):
        with pytest.raises(ValueError, match="is missing"):
            parse_estimates(
                "test", {key: value for key, value in BOUND.items() if key != f"bpd_{part}"}
            )
    with pytest.raises(ValueError, match="is missing"):
        parse_estimates("val", BOUND | {"bpd": {"mean": 1.5}})
