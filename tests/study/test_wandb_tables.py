"""A study in W&B: one run with all runs as a table."""

import json
from pathlib import Path

import pytest

from tests.run.wandb_server import KEY, Server
from tests.study.fake_runs import edit, sweep
from triptych.cli import report as cli
from triptych.study import wandb_tables
from triptych.study.study import read_study

CONFIG = "logger:\n  wandb: {entity: null, project: ours, group: null}\n"


def logged(root: Path) -> Path:
    """Fake runs of two settings that say that they report to W&B."""
    sweep(root, {"x0": 2.0, "v": 1.0})
    for number, run in enumerate(sorted(root.glob("*/config.yaml"))):
        run.write_text(run.read_text() + CONFIG)
        edit(run.parent / "provenance.json", id=f"id{number}")
    (root / "sweep.json").write_text("{}")
    return root


def test_without_a_login_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert cli.main([str(logged(tmp_path / "s")), "--wandb"]) == 1
    assert capsys.readouterr().err == "error: --wandb: not logged in to W&B; `wandb login`\n"


@pytest.mark.parametrize(
    ("project", "said"),
    [("", "none of these runs reports to W&B"), ("project: mine", "2 projects (mine, ours)")],
)
def test_what_has_no_project_is_refused_in_one_line(tmp_path, capsys, project, said):
    root = logged(tmp_path / "s")
    files = sorted(root.glob("*/config.yaml"))
    for file in files[: 1 if project else None]:
        file.write_text(file.read_text().replace("project: ours", project) if project else "seed: 1\n")
    assert cli.main([str(root), "--wandb"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith("error: --wandb: ")
    assert not list(root.glob("*re*.*")), "no report is written either"


def test_logged_again_it_is_the_same_run(tmp_path, monkeypatch, capsys):
    root = logged(tmp_path / "s")
    with Server() as server:
        for name, value in (("BASE_URL", server.url), ("API_KEY", KEY), ("MODE", "online")):
            monkeypatch.setenv(f"WANDB_{name}", value)
        addresses = []
        for _ in range(2):
            assert cli.main([str(root), "--wandb"]) == 0
            addresses.append(capsys.readouterr().out.splitlines()[-1])
        assert addresses[0] == addresses[1] and addresses[0].endswith("/runs/report-id0")
        check_tables(server, root)


def test_what_wandb_does_not_take_is_a_line(tmp_path, monkeypatch, capsys):
    """Of W&B's own errors; that its client notices a network that is gone: tests/run/test_wandb.py."""

    def gone(_):
        raise ConnectionError("no answer\nfrom there")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_tables, "import_wandb", gone)
    assert cli.main([str(logged(tmp_path / "s")), "--wandb"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("error: --wandb: W&B has not taken it (")


def check_tables(server: Server, root: Path) -> None:
    [(number, about)] = server.runs.items()
    story = read_study([root])
    assert about["jobType"] == "report" and about["notes"] == story.answer
    kinds = {(one["artifactTypeName"], one["artifactCollectionName"]) for one in server.artifacts}
    assert kinds == {("run_table", f"run-{number}-runs")}
    tables = {}
    for path, body in server.files.items():
        if "/table/" in path:
            tables[Path(path).name.rpartition("_")[0].rpartition("_")[0]] = json.loads(body)
    head, rows = tables["runs"]["columns"], tables["runs"]["data"]
    known = {run.dir.name: run for run in story.runs}
    assert {row[head.index("directory")] for row in rows} == {*known} and len(rows) == 6
    for row in rows:
        run = known[row[head.index("directory")]]
        assert row[head.index("test/bpd")] == run.bound and row[head.index("id")].startswith("id")
    assert "runs" in server.summaries[number]
