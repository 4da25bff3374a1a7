"""Code or packages that change between two starts of a run are reported in a line.

Reports mark such runs, too.
"""

import json
import shutil
from pathlib import Path

import triptych
from tests.run.accidents import stopped
from tests.run.commands import evaluated
from tests.study.fake_runs import make_run
from triptych.run import provenance
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.provenance import (
    changed_code_warning,
    code_digest,
    describe_changes,
    package_versions,
)
from triptych.run.provenance_file import Execution
from triptych.run.read import read_runs
from triptych.study.compare import compare

SOURCES = Path(triptych.__file__).parents[1]


def test_resume_under_changed_code_is_reported(prepared, monkeypatch, capsys, root):
    run = stopped(prepared("trainer.log_every_n_steps=1"))
    monkeypatch.setattr(provenance, "code_digest", lambda config: "other")
    capsys.readouterr()
    execute(run)
    line = "resumed with other code than before"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert (run / "train.log").read_text().splitlines().count(line) == 1
    first, second = run.provenance.record["executions"]
    assert first["sources"] != second["sources"] and second["changed"] == line


def test_evaluation_under_changed_code_is_reported(finished, monkeypatch, capsys):
    run = finished()
    capsys.readouterr()
    figures = evaluated(run.path)
    assert "other code" not in capsys.readouterr().err
    monkeypatch.setattr(provenance, "code_digest", lambda config: "other")
    assert evaluated(run.path) == figures
    line = f"{run.path.name}: evaluated with other code than the run's; figures may differ"
    assert line in capsys.readouterr().err.splitlines()


def test_changed_code_without_saved_step_is_not_reported(prepared, monkeypatch, capsys):
    run = prepared()
    arguments = ("cpu", 1, 0, run.config(), {"fingerprint": "a", "split": "b", "n": {}})
    assert provenance.add_execution(run, *arguments) == ""
    monkeypatch.setattr(provenance, "code_digest", lambda config: "0")
    assert provenance.add_execution(run, *arguments) == ""
    later = (*arguments[:2], 3, *arguments[3:])
    monkeypatch.setattr(provenance, "code_digest", lambda config: "1")
    assert provenance.add_execution(run, *later).startswith("resumed with other code than before")


def test_describe_changes_names_code_and_packages():
    old = Execution(sources="a", versions={"torch": "2.12.0", "numpy": "2.5"})
    new = Execution(sources="b", versions={"torch": "2.13.0", "numpy": "2.5"})
    assert describe_changes(old, new) == "code and packages"
    for last in (Execution(), new):  # of an older record the first
        assert describe_changes(last, new) == ""


def test_code_digest_covers_clone_and_user_packages(root, monkeypatch):
    (root / "lab").mkdir()
    (root / "lab" / "__init__.py").write_text("")
    (root / "lab" / "net.py").write_text("width = 1\n")
    monkeypatch.syspath_prepend(str(root))
    config = {"denoiser": {"network": {"_target_": "lab.net.Net", "width": 8}}}
    ours, before = code_digest({}), code_digest(config)
    assert before != ours
    (root / "lab" / "net.py").write_text("width = 2\n")
    assert code_digest(config) != before and code_digest({}) == ours
    copy = shutil.copytree(SOURCES / "triptych", root / "copy" / "triptych")
    monkeypatch.setattr(provenance, "_package_paths", lambda package: [copy])
    for file in sorted(copy.rglob("*.py"))[::40]:
        before = code_digest({})
        file.write_text(file.read_text() + "\n")
        assert code_digest({}) != before, file


def test_versions_lists_runtime_dependencies():
    found = package_versions()
    assert {"torch", "numpy", "pytorch-lightning", "hydra-core"} <= set(found)
    assert "pytest" not in found and json.dumps(found)


def test_report_notes_runs_of_different_commits(tmp_path):
    for i, objective in enumerate(("x0", "v")):
        run = make_run(tmp_path, objective, 1, 2.0 + i)
        record = json.loads((run / "provenance.json").read_text())
        record["git"]["commit"] = str(i) * 40
        (run / "provenance.json").write_text(json.dumps(record))
    (comparison,) = compare(read_runs(tmp_path))
    assert "different commits of the code" in " ".join(comparison.notes)


def under(run, code):
    record = json.loads((run / "provenance.json").read_text())
    record |= {"executions": [{"sources": code}]}
    (run / "provenance.json").write_text(json.dumps(record))


def test_repeated_sweep_reports_changed_code_once(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "code_digest", lambda config: "0")
    runs = [make_run(tmp_path, "x0", seed, 2.0) for seed in (1, 2, 3)]
    for run in runs:
        under(run, "0")
    assert changed_code_warning(*map(RunDirectory, runs)) == ""
    for run in runs[:2]:
        under(run, "1")
    (runs[2] / "config.yaml").unlink()  # which that run's own job says
    assert changed_code_warning(*map(RunDirectory, runs)) == (
        f"finished earlier, with other code than now ({runs[0].name}, {runs[1].name}); "
        "force=true runs again and keeps the old directory under another name"
    )
