"""Code or packages that change between a run's stop and its end: said in one line, and marked in reports."""

import json
from pathlib import Path

import pytest

import triptych
from tests.run.accidents import stopped
from tests.study.fake_runs import make_run
from triptych.run import provenance
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.provenance import describe_changes, digest_of, finished_before, source_files, versions
from triptych.run.provenance_file import Execution, Provenance
from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.results import results_csv

SOURCES = Path(triptych.__file__).parents[1]


def test_going_on_under_edited_sources(prepared, monkeypatch, capsys, root):
    run = stopped(prepared("trainer.log_every_n_steps=1"))
    edited = {"triptych/diffusion/objective.py": "other"}
    before = source_files(run.config())
    monkeypatch.setattr(provenance, "source_files", lambda config: before | edited)
    capsys.readouterr()
    execute(run)
    line = "going on under other code (triptych/diffusion/objective.py) than before"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert (run / "train.log").read_text().splitlines().count(line) == 1
    first, second = run.provenance.record["executions"]
    assert first["sources"] != second["sources"] and second["changed"] == line
    assert set(run.provenance.sources) == {first["sources"], second["sources"]}
    (read,) = read_runs(run.path.parent)
    assert read.code_changes == (line,)
    (comparison,) = compare([read])
    assert any("went on after an interruption under other code" in note for note in comparison.notes)
    assert line in results_csv([read], root)


def test_code_under_which_no_step_was_kept_is_no_change(prepared, monkeypatch, capsys):
    run = prepared()
    arguments = ("cpu", 1, 0, run.config(), {"fingerprint": "a", "split": "b", "n": {}})
    assert provenance.add_execution(run, *arguments) == ""
    monkeypatch.setattr(provenance, "source_files", lambda config: {"triptych/other.py": "0"})
    assert provenance.add_execution(run, *arguments) == ""
    later = (*arguments[:2], 3, *arguments[3:])
    monkeypatch.setattr(provenance, "source_files", lambda config: {"triptych/other.py": "1"})
    assert provenance.add_execution(run, *later).startswith("going on under other code (triptych/other.py)")


def test_packages_and_many_files_in_one_line():
    before, after = {"f1": "0", "f2": "0", "f3": "0", "f4": "0"}, {"f1": "1", "f2": "1", "f3": "1"}
    old = Execution(sources="a", versions={"torch": "2.12.0", "numpy": "2.5"})
    new = Execution(sources="b", versions={"torch": "2.13.0", "numpy": "2.5"})
    told = "code (f1, f2, f3 and 1 more) and packages (torch 2.12.0 -> 2.13.0)"
    assert describe_changes(Provenance(sources={"a": before}, executions=[old]), new, after) == told
    for last in (Execution(), new):  # of an older record the first
        assert describe_changes(Provenance(sources={"b": after}, executions=[last]), new, after) == ""


def test_every_source_counts_also_those_of_a_package_that_a_config_builds_from(root, monkeypatch):
    ours = source_files({})
    assert len(ours) == len(list((SOURCES / "triptych").rglob("*.py")))
    (root / "lab").mkdir()
    (root / "lab" / "__init__.py").write_text("")
    (root / "lab" / "net.py").write_text("width = 1\n")
    monkeypatch.syspath_prepend(str(root))
    config = {"denoiser": {"network": {"_target_": "lab.net.Net", "width": 8}}}
    before = source_files(config)
    assert set(before) - set(ours) == {"lab/__init__.py", "lab/net.py"}
    (root / "lab" / "net.py").write_text("width = 2\n")
    assert digest_of(source_files(config)) != digest_of(before)


def test_versions_are_of_what_the_project_needs():
    found = versions()
    assert {"torch", "numpy", "pytorch-lightning", "hydra-core"} <= set(found)
    assert "pytest" not in found and json.dumps(found)


@pytest.mark.parametrize("same_commit", [True, False])
def test_runs_of_other_code_are_noted(tmp_path, same_commit):
    for i, objective in enumerate(("x0", "v")):
        run = make_run(tmp_path, objective, 1, 2.0 + i)
        record = json.loads((run / "provenance.json").read_text())
        record["executions"] = [{"sources": f"{i}"}]
        if not same_commit:
            record["git"]["commit"] = str(i) * 40
        (run / "provenance.json").write_text(json.dumps(record))
    (comparison,) = compare(read_runs(tmp_path))
    notes = " ".join(comparison.notes)
    assert ("different code at the same commit" in notes) is same_commit
    assert ("different commits of the code" in notes) is not same_commit


def test_seeds_of_a_setting_under_other_code_are_named_and_a_package_that_one_setting_needs_is_no_other_code(
    tmp_path,
):
    ours = {"triptych/a.py": "0"}
    for seed in (1, 2, 3):
        for objective, files in (("x0", ours), ("mine", ours | {"lab/net.py": "0"})):
            under(make_run(tmp_path, objective, seed, 2.0 + seed / 10), files)
    assert not [note for note in compare(read_runs(tmp_path))[0].notes if "code" in note]
    (edited,) = tmp_path.glob("*objective=mine*seed=3*")
    under(edited, ours | {"lab/net.py": "1"})
    notes = [note for note in compare(read_runs(tmp_path))[0].notes if "code" in note]
    assert notes == ["mine with seed 3 used other code (lab/net.py) than others."]
    for seed in (1, 2):
        (run,) = tmp_path.glob(f"*objective=mine*seed={seed}*")
        under(run, {"triptych/a.py": "1", "lab/net.py": "1"})
    under(edited, {"triptych/a.py": "1", "lab/net.py": "1"})
    notes = [note for note in compare(read_runs(tmp_path))[0].notes if "code" in note]
    assert notes == ["x0 used other code (triptych/a.py) than others."]


def under(run, files):
    record = json.loads((run / "provenance.json").read_text())
    code = digest_of(files)
    record |= {"executions": [{"sources": code}], "sources": {code: files}}
    (run / "provenance.json").write_text(json.dumps(record))


def test_a_sweep_typed_again_after_an_edit_names_it_once(tmp_path, monkeypatch):
    now = {"triptych/a.py": "0"}
    monkeypatch.setattr(provenance, "source_files", lambda config: now)
    runs = [make_run(tmp_path, "x0", seed, 2.0) for seed in (1, 2, 3)]
    for run in runs:
        under(run, now)
    assert finished_before(*map(RunDirectory, runs)) == ""
    for run in runs[:2]:
        under(run, {"triptych/a.py": "1"})
    (runs[2] / "config.yaml").unlink()  # which that run's own job says
    assert finished_before(*map(RunDirectory, runs)) == (
        "2 runs finished before, under other code (triptych/a.py) than now; force=true runs them anew, "
        "the old directories are kept aside"
    )
