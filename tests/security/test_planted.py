"""Values of any type and size in files where a run or a sweep keeps its records."""

import json
import shutil

import pytest

from tests.study.fake_runs import make_runs, metrics
from triptych.run.directory import RunDirectory
from triptych.run.parsing import natural_key
from triptych.run.read import read_position
from triptych.run.result import Result, result_line
from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.claims import sweep_decision_rule
from triptych.study.results_page import find_papers
from triptych.study.study import read_study

HUGE = 10**400  # JSON has it, and no float
FINISHED = {"schema": 1, "status": "finished"}


def plant(folder, name, record):
    (folder / name).write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


def test_one_line_prints_result_of_single_item_without_stderr(root):
    figures = {name: figure | {"stderr": None, "n": 1} for name, figure in metrics(2.0).items()}
    line = result_line(
        RunDirectory(plant(root, "summary.json", FINISHED | {"test": figures})).summary()
    )
    assert line.startswith("test bound 2.0000 bits/dim") and "n = 1" in line


def test_natural_key_sorts_very_long_numbers():
    names = ["seed=10", "seed=2", "seed=" + "9" * 5000]
    assert sorted(names, key=natural_key) == [names[1], names[0], names[2]]


# sweeps

LOOKS = {"looks": 5, "equal_within": None, "seeds": [[1, 2]]}


def test_looks_json_applies_without_sweep_json(root):
    """Otherwise a test of five looks would claim at the level of one."""
    rule = sweep_decision_rule(SweepRecord(), Looks.read(plant(root, "looks.json", LOOKS)))
    assert rule.looks == 5 and rule.seen == (frozenset({1, 2}),)


def plant_sweep(root):
    """Make six runs of two settings, clear of each other."""
    for seed in (1, 2, 3):
        for label, mean in (("v", 2.0), ("x0", 3.0)):
            (root / f"{label}{seed}").mkdir()
            (root / f"{label}{seed}" / "config.yaml").write_text(f"label: {label}\nseed: {seed}\n")
            plant(root / f"{label}{seed}", "provenance.json", {"id": f"{label}{seed}"})
            record = FINISHED | {"seed": seed, "overrides": [f"objective={label}"]}
            record |= {"test": metrics(mean + seed / 100 * mean)}
            RunDirectory(root / f"{label}{seed}").record(Result.from_json(record))


def test_report_claims_nothing_with_damaged_sweep_json(root):
    """The record has the number of runs to come, and an unfinished sweep claims nothing."""
    plant_sweep(root)
    assert "Clear of" in read_study([root]).answer
    for text in ('{"expected": 15, "title": "x', "[]"):
        story = read_study([plant(root, "sweep.json", text)])
        assert "Clear of" not in story.answer and "sweep.json: cannot be read" in story.banner


def test_copied_run_does_not_replace_missing_run(root):
    """`cp -r` within an unfinished sweep makes such a copy."""
    plant_sweep(root)
    shutil.copytree(root / "v1", root / "v1 copy")
    plant(root, "sweep.json", {"expected": 6})
    assert "Clear of" in read_study([root]).answer
    plant(root, "sweep.json", {"expected": 7})
    story = read_study([root])
    assert story.answer.startswith("So far") and "1 not started" in story.banner


def test_report_recommends_only_triptych_commands(root):
    make_runs(root, {"v": {1: 2.0, 2: 2.1}, "x0": {1: 2.3, 2: 2.3}})
    for command in ("triptych-train -m objective=v,x0", "rm -rf ~ -m"):
        plant(root, "sweep.json", {"command": command})
        assert bool(read_study([root]).next_step) is command.startswith("triptych-train")


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("sweep.json", {"expected": "x"}, "expected='x': must be a whole number"),
        ("sweep.json", {"title": 3}, "title=3: must be"),
        ("sweep.json", {"command": 3}, "command=3: must be"),
        ("sweep.json", {"shared": 1}, "shared=1: must be a list"),
        (
            "sweep.json",
            {"equal_within": True},
            "equal_within=True: must be null or a number above 0",
        ),
        ("sweep.json", {"until": "x"}, "until='x': must be a group"),
        ("sweep.json", {"until": {"looks": HUGE}}, "looks="),
        ("sweep.json", {"tuning": 1}, "tuning=1: must be a group"),
        (
            "sweep.json",
            {"tuning": {"keys": ["lr"], "best": {"x": ["lr=1"]}}},
            "must be one of tuning.points",
        ),
        (
            "sweep.json",
            {"tuning": {"points": [[]]}},
            "tuning.points: [] must have one value for each of",
        ),
        ("sweep.json", {"paper": 3}, "paper=3: must be a group"),
        ("sweep.json", {"scale": "../x"}, "scale='../x': must be small or paper"),
        ("looks.json", {"seeds": 3}, "seeds=3: must be a list"),
        ("looks.json", {"seeds": [["x"]]}, "seeds=[['x']]: must be a list"),
        ("sweep.json", {"schema": 2}, "schema=2: must be 1"),
        ("looks.json", LOOKS | {"schema": 2}, "schema=2: must be 1"),
        ("looks.json", {"looks": "2"}, "looks='2': must be a whole number from 1 to 1000000"),
    ],
)
def test_malformed_sweep_record_is_refused_and_kept(root, inside, name, record, reason):
    """The report shows it and claims nothing; a command that resumes writes nothing."""
    folder = root / "logs" / "sweeps" / "s"
    folder.mkdir(parents=True)
    plant_sweep(folder)
    text = (plant(folder, name, record) / name).read_text()
    story = read_study([folder])
    assert "Clear of" not in story.answer and f"{name}: " in story.banner and reason in story.banner
    done = inside("triptych.cli.train", "-m", "name=s", "objective=x0", "seed=1")
    assert (
        done.returncode == 1
        and f"error: {folder / name}: " in done.stderr
        and reason in done.stderr
    )
    assert (folder / name).read_text() == text and not (folder / "report.html").exists()


def test_sweep_record_keeps_unknown_entries(root):
    record = {"expected": 2, "of_later": [1]}
    assert SweepRecord.from_dict(record).record == record


def test_sweep_command_that_cannot_be_parsed_is_ignored(root):
    plant(root, "sweep.json", {"command": "triptych-train 'x"})
    assert read_study([root]).command == ""
    assert find_papers([plant(root, "sweep.json", [1])]) == []


@pytest.mark.parametrize(
    "record", [{"x": 1}, {"stage": "fit", "step": HUGE, "max_steps": 1, "updated": "now"}, [1]]
)
def test_malformed_progress_is_not_shown(root, record):
    (root / "run").mkdir()
    plant(root / "run", "progress.json", record)
    assert read_position(root / "run") is None
