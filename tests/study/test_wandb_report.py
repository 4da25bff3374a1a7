"""W&B's report: what it names is what W&B has of the runs, and the comparison is ours."""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.wandb_files import directories
from tests.run.wandb_server import KEY, Server
from tests.study.fake_runs import failed, make_run, running, sweep
from triptych.cli import report as cli
from triptych.run.directory import RunDirectory
from triptych.study.study import read_study
from triptych.study.wandb_report import build_report, plain_report, project_of, save_report

CONFIG = "logger:\n  wandb: {entity: null, project: ours, group: null}\n"


def logged(root: Path, config: str = CONFIG) -> Path:
    """Fake runs that say that they report to W&B."""
    for number, run in enumerate(sorted(root.glob("*/config.yaml"))):
        run.write_text(run.read_text() + config)
        file = run.parent / "provenance.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"id": f"id{number}"}))
    return root


# what the specifications ask for ------------------------------------------------------------------------


def parts(spec, kind: str) -> Iterator[dict]:
    """Every dictionary within ``spec`` that has the key ``kind``."""
    if isinstance(spec, dict):
        if kind in spec:
            yield spec
        for value in spec.values():
            yield from parts(value, kind)
    elif isinstance(spec, list):
        for value in spec:
            yield from parts(value, kind)


class Kept:
    """What a server has of one run, and answers to the queries of a report."""

    def __init__(self, server: Server, number: str, folder: Path):
        self.number, self.folder = number, folder
        self.rows, self.summary = server.history(number), server.summaries[number]
        self.config, self.about = server.configs[number], server.runs[number]

    def at(self, section: str, name: str):
        """The value of a key as W&B has it: run, config or summary."""
        if section == "run":
            return {"name": self.number, "group": self.about.get("groupName"), "displayName": "x"}[name]
        if section == "summary":
            return self.summary[name]
        value = self.config
        for step in name.split("."):
            value = value[step]
        return value

    def chosen(self, filters: dict) -> bool:
        assert filters["filterFormat"] == "filterV2"
        for one in filters["filters"]:
            assert one["op"] == "IN"
        return all(self.at(**one["key"]) in one["value"] for one in filters["filters"])

    def check_panel(self, panel: dict) -> None:
        """All that the panel names is there."""
        config, kind = panel["config"], panel["viewType"]
        if by := config.get("groupBy"):
            self.at("run" if by == "group" else "config", by)
        if kind == "Bar Chart":
            assert all(math.isfinite(self.summary[name]) for name in config["metrics"])
        elif kind == "Run History Line Plot":
            for name in config["metrics"]:
                assert [row for row in self.rows if {name, config["xAxis"]} <= {*row}], name
        elif kind == "Media Browser":
            for name in config["mediaKeys"]:
                [*pictures] = [row[name] for row in self.rows if name in row]
                files = [self.folder / "files" / file for one in pictures for file in one["filenames"]]
                assert files and all(file.is_file() for file in files)
        else:
            pytest.fail(kind)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_they_ask_for_is_what_wandb_has(prepared, root, monkeypatch):
    """A real sweep, offline, sent by ``wandb sync``, W&B's own reader of its files, to a stand-in server."""
    from triptych.run.execute import execute

    home = root / "logs" / "runs" / "s"
    small = ["experiment=ring", "measures.n=8", "measures.repeats=2"]
    home.mkdir(parents=True)
    (home / "sweep.json").write_text("{}")
    for objective in ("x0", "v"):
        for lr in (0.001, 0.002):
            for seed in (1, 2):
                cell = f"objective={objective},optimizer.lr={lr},seed={seed}"
                execute(prepared(*small, *cell.split(","), path=f"s/{cell}", csv=False))
    runs = [RunDirectory(path) for path in sorted(home.glob("*/"))]
    with Server() as server:
        there = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
        folders = {run.provenance()["id"]: directories(run / "wandb")[0] for run in runs}
        line = [sys.executable, "-m", "wandb", "sync", *map(str, folders.values())]
        subprocess.run(line, env=os.environ | there, check=True, capture_output=True, cwd=root)
        kept = [Kept(server, number, folder) for number, folder in folders.items()]
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        both = read_study([home])
        save_report(both, None, project_of(both)[1], home)
    for one in kept:
        drawn = one.config["_wandb"]["value"]["visualize"]
        assert {f"{key}_table" for key in drawn} == {key for key in one.summary if key.endswith("_table")}
        assert one.config["optimizer/lr"]["value"] in (0.001, 0.002)
    assert {one.about["groupName"] for one in kept} == {"s"}
    check(both, kept, axes=2)
    one_axis = read_study([run.path for run in runs if "optimizer.lr=0.001" in run.path.name])
    said = check(one_axis, kept, axes=1)
    assert one_axis.answer in said and both.answer not in said


def check(story, kept: list[Kept], axes: int) -> str:
    """Every key that the report names is there; its runs are those compared, and so are its groups."""
    [comparison] = story.comparisons
    assert len(comparison.axes) == axes
    page = plain_report(build_report(story, "", project_of(story)[1]))["report"]
    ours = {RunDirectory(run.dir).provenance()["id"] for run in story.runs}
    kinds = set()
    for grid in parts(page, "runSets"):
        [runset] = grid["runSets"]
        [chosen] = [one["value"] for one in runset["filters"]["filters"]]
        panels = [*parts(grid, "viewType")]
        kinds |= {panel["viewType"] for panel in panels}
        assert {*chosen} == ours
        if runset["name"] == "all runs":
            assert not panels
            continue
        for one in kept:
            for panel in panels:
                one.check_panel(panel)
        compared = [one for one in kept if one.number in ours]
        keys = [(key["key"]["section"], key["key"]["name"]) for key in runset["sort"]["keys"]]
        assert all(one.at(*key) is not None for one in compared for key in keys)
        check_groups(compared, runset["grouping"], comparison)
    assert kinds == {"Bar Chart", "Run History Line Plot", "Media Browser"}
    return json.dumps(page, ensure_ascii=False)


def check_groups(chosen: list[Kept], grouping: list[dict], comparison) -> None:
    """Grouped as W&B is asked to, mean and standard error over seeds are those of our cells."""
    groups: dict[str, list[float]] = {}
    for one in chosen:
        label = " / ".join(str(one.at(**key)) for key in grouping)
        groups.setdefault(label, []).append(one.summary[f"test/{comparison.measure}"])
    assert {*groups} == {cell.label for cell in comparison.cells}
    for cell in comparison.cells:
        values = groups[cell.label]
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        assert cell.bound.mean == pytest.approx(mean, rel=1e-6)
        assert cell.bound.stderr == pytest.approx(math.sqrt(spread / len(values)), rel=1e-4)


# without a real run -------------------------------------------------------------------------------------


def test_a_file_without_a_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    root = logged(sweep(tmp_path / "a=b"))
    (root / "sweep.json").write_text(json.dumps({"title": "x0 + v", "command": "triptych-train -m x"}))
    file = tmp_path / "views.json"
    assert cli.main([str(root), "--wandb-json", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    views = json.loads(file.read_text())
    assert {*views} == {"entity", "project", "report"}
    assert views["project"] == "ours" and views["report"]["name"] == "x0 + v"
    story = read_study([root])
    words = [part["content"] for part in parts(views["report"], "content")]
    assert any("| objective | seeds |" in text and story.verdicts[0].headline[:20] in text for text in words)
    assert "triptych-train -m x" in words[-1]


def test_two_data_sets_and_runs_without_a_result(tmp_path):
    """A run set for each comparison, of what was compared; the last one has the rest too."""
    root = tmp_path / "s"
    for data, bound in (("digits", 2.0), ("mnist", 1.0)):
        for objective in ("x0", "v"):
            for seed in (1, 2):
                keys = [f"data={data}", f"objective={objective}", f"seed={seed}"]
                make_run(root, objective, seed, bound + 0.1 * seed, data=data, overrides=keys)
    running(root, "epsilon", 1)
    failed(root, "score", 1, "no room")
    logged(root)
    story = read_study([root])
    views = plain_report(build_report(story, "", "ours"))
    compared = [runset for grid in parts(views["report"], "runSets") for runset in grid["runSets"]]
    ids = {runset["name"]: {*runset["filters"]["filters"][0]["value"]} for runset in compared}
    headings = {comparison.heading for comparison in story.comparisons}
    assert len(headings) == 2 and headings < {*ids}
    assert all(len(ids[name]) == 4 for name in headings) and not set.intersection(*map(ids.get, headings))
    assert len(ids["all runs"]) == len(story.runs) == 10
    said = json.dumps(views["report"])
    assert story.banner in said and "1 running, 1 failed" in said


def test_without_a_login_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    root = logged(sweep(tmp_path / "s", {"x0": 2.0, "v": 1.0}))
    assert cli.main([str(root), "--wandb"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert "not logged in" in said and "--wandb-json=FILE" in said


@pytest.mark.parametrize(
    ("config", "said"),
    [("", "none of these runs reports to W&B"), ("project: mine", "2 projects (mine, ours)")],
)
def test_what_has_no_project_is_refused_in_one_line(tmp_path, capsys, config, said):
    root = sweep(tmp_path / "s", {"x0": 2.0, "v": 1.0})
    if config:
        logged(root)
        file = next(iter(sorted(root.glob("*/config.yaml"))))
        file.write_text(file.read_text().replace("project: ours", config))
    assert cli.main([str(root), "--wandb-json", str(tmp_path / "f")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and line.startswith(f"error: --wandb-json {tmp_path / 'f'}: ")
    assert not (tmp_path / "f").exists() and not list(root.glob("*re*.*")), "no report is written either"


def check_tables(server: Server, spec: dict, root: Path) -> None:
    """One run, of the report, has all runs as a table and the error by noise level by setting."""
    [(number, about)] = server.runs.items()
    assert about["jobType"] == "report"
    kinds = {(one["artifactTypeName"], one["artifactCollectionName"]) for one in server.artifacts}
    assert kinds == {("run_table", f"run-{number}-{name}") for name in ("runs", "noise_levels_table")}
    tables = {}
    for path, body in server.files.items():
        if "/table/" in path:
            tables[Path(path).name.rpartition("_")[0].rpartition("_")[0]] = json.loads(body)
    head, rows = tables["runs"]["columns"], tables["runs"]["data"]
    known = {run.dir.name: run for run in read_study([root]).runs}
    assert {row[head.index("directory")] for row in rows} == {*known} and len(rows) == 6
    for row in rows:
        run = known[row[head.index("directory")]]
        assert row[head.index("test/bpd")] == run.bound and row[head.index("id")].startswith("id")
    levels = tables["noise_levels_table"]
    assert levels["columns"] == ["setting", "gamma", "epsilon_mse"] and len(levels["data"]) == 40
    seeds = [run.noise_levels.value for run in known.values() if run.overrides["objective"] == "v"]
    shown = [mse for setting, _, mse in levels["data"] if setting == "v"]
    assert shown == pytest.approx([sum(at) / 3 for at in zip(*seeds, strict=True)])
    own = [grid for grid in parts(spec, "runSets") if f'"{number}"' in json.dumps(grid)]
    assert [one["viewType"] for grid in own for one in parts(grid, "viewType")] == ["Vega2", "Weave"]
    [drawn] = [one for one in parts(own, "viewType") if one["viewType"] == "Vega2"]
    assert drawn["config"]["fieldSettings"] == {"x": "gamma", "y": "epsilon_mse", "stroke": "setting"}
    assert '"noise_levels_table"' in json.dumps(drawn["config"]["userQuery"])
    assert {"runs", "noise_levels_table"} < {*server.summaries[number]}


def test_saved_again_it_is_the_same_report(tmp_path, monkeypatch, capsys):
    root = logged(sweep(tmp_path / "s", {"x0": 2.0, "v": 1.0}))
    (root / "sweep.json").write_text("{}")
    with Server() as server:
        for name, value in (("BASE_URL", server.url), ("API_KEY", KEY), ("MODE", "online")):
            monkeypatch.setenv(f"WANDB_{name}", value)
        addresses = []
        for _ in range(2):
            assert cli.main([str(root), "--wandb"]) == 0
            addresses.append(capsys.readouterr().out.splitlines()[-1])
        assert addresses[0] == addresses[1] and addresses[0].startswith(f"{server.url}/us/ours/reports/")
        [view] = server.views.values()
        runsets = [
            runset for grid in parts(json.loads(view["spec"]), "runSets") for runset in grid["runSets"]
        ]
        assert view["type"] == "runs" and {runset["project"]["name"] for runset in runsets} == {"ours"}
        check_tables(server, json.loads(view["spec"]), root)
        server.dead = True
        assert cli.main([str(root), "--wandb"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("error: --wandb: W&B has not taken it (")
