"""Files with values of any kind and size, planted where a run or a sweep keeps its records."""

import json
import math
import shutil

import pytest

from tests.study.fake_runs import make_runs, metrics
from triptych.run.directory import RunDirectory
from triptych.run.parsing import natural_key
from triptych.run.read import read_position, read_run
from triptych.run.result import Result, one_line
from triptych.study.cells import Rule
from triptych.study.claims import read_rule
from triptych.study.groups import read_tuning
from triptych.study.papers.results_page import find_papers
from triptych.study.study import _command, read_study

HUGE = 10**400  # JSON has it, and no float
FINISHED = {"schema": 1, "status": "finished"}


def plant(folder, name, record):
    (folder / name).write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


@pytest.mark.parametrize("mean", [HUGE, -1e200])  # whose square is no float
def test_a_number_beyond_floats_hides_no_other_run(root, mean):
    run = plant(root, "summary.json", FINISHED | {"test": {"accuracy": {"mean": mean}}})
    assert read_run(run).status == "unreadable" and "test.accuracy.mean" in read_run(run).error


def test_numbers_whose_squares_are_none_are_no_numbers(root):
    run = plant(root, "summary.json", FINISHED | {"seconds": {"fit": 1e308}, "parameters": 1e200})
    assert math.isnan(read_run(run).seconds["fit"]) and read_run(run).parameters is None


def test_a_result_of_one_item_is_printed_without_an_error(root):
    figures = {name: figure | {"stderr": None, "n": 1} for name, figure in metrics(2.0).items()}
    line = one_line(RunDirectory(plant(root, "summary.json", FINISHED | {"test": figures})).summary())
    assert line.startswith("test bound 2.0000 bits/dim") and "n = 1" in line


def test_names_are_sorted_however_long_their_digits():
    names = ["seed=10", "seed=2", "seed=" + "9" * 5000]
    assert sorted(names, key=natural_key) == [names[1], names[0], names[2]]


# sweeps

LOOKS = {"looks": 5, "equal_within": None, "seeds": [[1, 2]]}


def test_without_a_sweeps_record_its_looks_still_count(root):
    """Else a test of five looks would claim at the level of one."""
    rule = read_rule(plant(root, "looks.json", LOOKS), {})
    assert rule.looks == 5 and rule.seen == (frozenset({1, 2}),)


def plant_sweep(root):
    """Six runs of two settings, clear of each other."""
    for seed in (1, 2, 3):
        for label, mean in (("v", 2.0), ("x0", 3.0)):
            (root / f"{label}{seed}").mkdir()
            (root / f"{label}{seed}" / "config.yaml").write_text(f"label: {label}\nseed: {seed}\n")
            record = FINISHED | {"seed": seed, "overrides": [f"objective={label}"]}
            record |= {"test": metrics(mean + seed / 100 * mean)}
            RunDirectory(root / f"{label}{seed}").record(Result.from_json(record))


def test_with_a_damaged_record_of_a_sweep_nothing_is_claimed(root):
    """It says how many runs are to come, and a sweep that has not ended claims nothing."""
    plant_sweep(root)
    assert "Clear of" in read_study([root]).answer
    for text in ('{"expected": 15, "title": "x', "[]"):
        story = read_study([plant(root, "sweep.json", text)])
        assert "Clear of" not in story.answer and "sweep.json: cannot be read" in story.banner
    assert read_study([plant(root, "sweep.json", {"expected": "many"})]).expected == 6


def test_a_copy_of_a_run_stands_for_none_that_is_missing(root):
    """As of `cp -r` within a sweep that goes on."""
    plant_sweep(root)
    shutil.copytree(root / "v1", root / "v1 copy")
    plant(root, "sweep.json", {"expected": 6})
    assert "Clear of" in read_study([root]).answer
    plant(root, "sweep.json", {"expected": 7})
    story = read_study([root])
    assert story.answer.startswith("So far") and "1 not started" in story.banner


def test_a_command_that_is_none_of_ours_is_not_recommended(root):
    make_runs(root, {"v": {1: 2.0, 2: 2.1}, "x0": {1: 2.3, 2: 2.1}})
    for command in ("triptych-train -m objective=v,x0", "rm -rf ~ -m"):
        plant(root, "sweep.json", {"command": command})
        assert bool(read_study([root]).next_step) is command.startswith("triptych-train")


@pytest.mark.parametrize("value", [HUGE, float("inf"), True, "1"])
def test_a_rule_of_no_size_is_none(root, value):
    assert read_rule(root, {"equal_within": value}) == Rule()
    assert read_rule(root, {"until": {"looks": value}}) == Rule()


def test_a_malformed_record_of_a_sweep_names_nothing(root):
    """No command, no tuning (it has no points), no paper."""
    assert _command({"command": 5}, ()) == _command({"command": "triptych-train 'x"}, ()) == ""
    record = {"best": {"x": ["1"]}, "points": [], "keys": ["lr"], "equal": ["1"], "seeds": [1]}
    assert read_tuning({"tuning": record}) is None
    assert find_papers([plant(root, "sweep.json", [1])]) == []


@pytest.mark.parametrize(
    "record", [{"x": 1}, {"stage": "fit", "step": HUGE, "max_steps": 1, "updated": "now"}, [1]]
)
def test_malformed_progress_is_not_shown(root, record):
    (root / "run").mkdir()
    plant(root / "run", "progress.json", record)
    assert read_position(root / "run") is None
