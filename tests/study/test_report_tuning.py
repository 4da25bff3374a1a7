"""Reports of tuned sweeps compare both stages but no trials, and describe the choice."""

import json
from pathlib import Path

import pytest

from tests.study.fake_runs import make_run, metrics
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import SweepRecord, Tuning
from triptych.study.groups import BEST, EQUAL, OTHER, describe_tuning, setting_label, tuning_stages
from triptych.study.render import write_report
from triptych.study.study import read_study

LRS = ("0.1", "0.2", "0.4")
BEST_OF = {"x0": "0.1", "v": "0.4"}
SWEEP = {
    "tuning": {
        "keys": ["optimizer.lr"],
        "seeds": [101, 102],
        "points": [[f"optimizer.lr={lr}"] for lr in LRS],
        "equal": ["optimizer.lr=0.2"],
        "best": {f"objective={o}": [f"optimizer.lr={lr}"] for o, lr in BEST_OF.items()},
    }
}


def add(root, objective, lr, seed, bound):
    """Make a run of the report, or a trial, which has read no test set."""
    told = [f"objective={objective}", f"optimizer.lr={lr}", f"seed={seed}"]
    trial = {"test": {}, "train": {}, "val": metrics(bound)} if seed > 100 else {}
    make_run(root, objective, seed, bound, overrides=told + ["test=false"] * bool(trial), **trial)


@pytest.fixture
def runs(tmp_path):
    for objective in ("x0", "v"):
        for lr in LRS:
            for seed in (101, 102):
                add(
                    tmp_path,
                    objective,
                    lr,
                    seed,
                    2.0 + abs(LRS.index(lr) - LRS.index(BEST_OF[objective])),
                )
        for lr in {"0.2", BEST_OF[objective]}:
            for seed in (1, 2, 3):
                add(
                    tmp_path,
                    objective,
                    lr,
                    seed,
                    2.0 + (lr == "0.2") * 0.1 + (objective == "x0") * 0.05,
                )
    return read_runs(tmp_path)


def test_stages_remove_tuned_keys_from_settings(runs):
    found = dict(tuning_stages(runs, SweepRecord.from_dict(SWEEP).tuning))
    assert list(found) == [BEST, EQUAL]
    for part in found.values():
        assert len(part) == 6 and not any("optimizer.lr" in run.overrides for run in part)
    assert {run.bound for run in found[EQUAL]} == {2.15, 2.1}
    assert {run.bound for run in found[BEST]} == {2.05, 2.0}


def test_runs_before_the_tuning_are_compared_apart(runs, tmp_path):
    for objective, bound in (("x0", 2.4), ("v", 2.6)):
        for seed in (1, 2):
            told = [f"objective={objective}", f"seed={seed}"]
            make_run(tmp_path / "before", objective, seed, bound, overrides=told)
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    comparisons = read_study([tmp_path]).comparisons
    assert [comparison.title for comparison in comparisons] == [BEST, EQUAL, OTHER]
    assert {run.bound for cell in comparisons[2].cells for run in cell.runs.values()} == {2.4, 2.6}


def test_stages_of_untuned_sweep_is_one_stage(runs, tmp_path):
    [comparison] = read_study([tmp_path]).comparisons
    runs = [run for cell in comparison.cells for run in (*cell.runs.values(), *cell.others)]
    assert comparison.title == "" and len(runs) == 12 and {run.seed for run in runs} == {1, 2, 3}


def test_describe_tuning_states_budget_choices_and_edges():
    said = describe_tuning(SweepRecord.from_dict(SWEEP).tuning)
    assert "6 trials for each setting (3 values, 2 seeds)" in said and "x0: 0.1; v: 0.4" in said
    assert "Best at the edge of its range: x0 and v" in said


def test_report_of_tuned_sweep_shows_both_stages_under_one_correction(runs, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    report = write_report(tmp_path)
    titles = [c.title for c in report.study.comparisons]
    assert titles == [BEST, EQUAL]
    assert len({c.tests for c in report.study.comparisons}) == 1  # the family is the whole report's
    page = report.html.read_text()
    assert "Tuning" in page and "6 trials for each setting" in page
    assert page.index("Each at its best</h2>") < page.index("Equal settings</h2>")
    assert "seed=101" not in " ".join(
        cell.label for c in report.study.comparisons for cell in c.cells
    )
    assert "On digits" not in report.study.answer and "Each at its best: " in report.study.answer


def test_tuned_sweep_is_not_advised_to_add_seeds(tmp_path):
    """More seeds at a later look need until=decided, which is refused together with tuning."""
    for objective, edge in (("x0", 0.02), ("v", 0.0)):
        for seed in (101, 102):
            add(tmp_path, objective, "0.1", seed, 2.0)
        for seed, noise in ((1, 0.01), (2, -0.02), (3, 0.013)):
            add(
                tmp_path,
                objective,
                "0.1",
                seed,
                2.0 + seed / 10 + edge + noise * (objective == "x0"),
            )
    tuning = {
        "keys": ["optimizer.lr"], "seeds": [101, 102], "points": [["optimizer.lr=0.1"]],
        "equal": ["optimizer.lr=0.1"], "best": {f"objective={o}": ["optimizer.lr=0.1"] for o in ("x0", "v")},
    }  # fmt: skip
    command = ["triptych-train", "-m", "ablation=objectives_tuned", "seed=1,2,3"]
    (tmp_path / "sweep.json").write_text(
        json.dumps({"expected": 10, "command": command, "tuning": tuning})
    )
    assert read_study([tmp_path]).next_step is None
    untuned = {"expected": 10, "command": command}
    (tmp_path / "sweep.json").write_text(json.dumps(untuned))
    assert "until=decided" in str(read_study([tmp_path]).next_step)


def test_joint_report_applies_tuning_of_each_sweep(runs, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    make_run(tmp_path / "other", "levels", 1, 1.5)
    (tmp_path / "other" / "sweep.json").write_text('{"expected": 1}')
    for roots in ([tmp_path], [tmp_path / "other", tmp_path]):
        labels = {cell.label for c in read_study(roots).comparisons for cell in c.cells}
        assert labels == {"x0", "v", "levels"}
        titles = [c.title for c in read_study(roots).comparisons]
        assert titles == [f"{tmp_path.name}: {BEST}", f"{tmp_path.name}: {EQUAL}", ""]


def test_setting_values_with_commas_are_one_setting():
    best = {"objective=x0,denoiser.network.widths=[24,32]": ("optimizer.lr=0.1",)}
    assert [setting_label(name) for name in best] == ["x0 / [24,32]"]
    told = {"objective": "x0", "denoiser.network.widths": "[24,32]", "optimizer.lr": "0.1"}
    run = Run(dir=Path("/none"), status="finished", overrides=told)
    tuning = Tuning(
        ("optimizer.lr",), (("optimizer.lr=0.1",),), ("optimizer.lr=0.1",), best, [1, 2]
    )
    assert [len(part) for _, part in tuning_stages([run], tuning)] == [1, 1]


def test_tuning_edge_is_by_value_not_by_typed_order():
    points = tuple((f"lr={lr}",) for lr in ("0.01", "0.001", "0.1"))
    best = {"o=inner": ("lr=0.01",), "o=outer": ("lr=0.1",)}
    tuning = Tuning(("lr",), points, ("lr=0.01",), best, [1, 2])
    assert "Best at the edge of its range: outer; a wider" in describe_tuning(tuning)
