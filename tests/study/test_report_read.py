"""A run directory, whole or broken, as a `Run`."""

import math
import os
import socket
import subprocess

import pytest

from tests.refusal import refused
from triptych.errors import StorageError
from triptych.run.directory import RunDirectory
from triptych.run.parsing import natural_key, parse_overrides
from triptych.run.read import find_runs, read_run, read_runs
from triptych.study.render import write_figures, write_report
from triptych.study.study import read_study

from .fake_runs import failed, make_run, make_runs, metrics, running, start_run, sweep


def test_read_run_of_finished_run(tmp_path):
    run = read_run(make_run(tmp_path, "x0", 2, 2.45), sweep="objectives")
    assert (run.status, run.seed, run.bound, run.measure) == ("finished", 2, 2.45, "bpd")
    assert run.overrides == {"objective": "x0", "seed": "2"} and run.choices["schedule"] == "linear"
    assert run.test["bpd"].n == 297 and run.train["bpd"].mean == pytest.approx(2.39)
    assert (run.host, run.commit[:6], run.command[0]) == ("box", "012345", "triptych-train")


def test_read_run_of_failed_run_has_error(tmp_path):
    run = read_run(failed(tmp_path, "score", 1, "ValueError: loss is nan\nat step 4"))
    assert (run.status, run.error, run.seed) == ("failed", "ValueError: loss is nan", 1)
    assert run.choices["data"] == "digits"  # from its provenance


def test_report_that_cannot_be_written_changes_no_file(tmp_path):
    root = sweep(tmp_path / "objectives", {"x0": 2.0})
    (root / "results.csv").write_text("earlier")
    (root / "report.html").mkdir()
    refused(lambda: write_report(root), "report.html: cannot be written", error=StorageError)
    assert (root / "results.csv").read_text() == "earlier"


def test_figures_that_cannot_be_written_change_no_file(tmp_path):
    study = read_study([sweep(tmp_path / "objectives", {"x0": 2.0, "v": 2.1})])
    figures = tmp_path / "figures"
    (figures / "results.tex").mkdir(parents=True)
    refused(lambda: write_figures(study, figures), "results.tex: cannot", error=StorageError)
    assert [path.name for path in figures.iterdir()] == ["results.tex"]


def test_running_run_without_recent_progress_is_interrupted(tmp_path):
    path = running(tmp_path, "v", 3, step=120, updated=1000.0)
    run = read_run(path, now=1010.0)
    assert run.status == "running" and run.progress is not None and run.progress.step == 120
    assert run.overrides["objective"] == "v" and run.seed == 3
    assert read_run(path, now=5000.0).status == "interrupted"
    (path / "prune").touch()
    assert read_run(path, now=5000.0).status == "pruned", "a search has stopped it"


def test_run_with_only_config_is_running_or_interrupted(tmp_path):
    path = start_run(tmp_path, "v", 1, ["seed=1"], {})
    (path / "provenance.json").unlink()
    begun = (path / "config.yaml").stat().st_mtime
    assert read_run(path, now=begun + 5).status == "running"
    assert read_run(path, now=begun + 5000).status == "interrupted"


def test_run_with_dead_process_is_interrupted(tmp_path):
    run = running(tmp_path, "score", 1)
    for who, status in ((os.getpid(), "running"), (gone(), "interrupted")):
        (run / ".lock").write_text(f"somebody@{socket.gethostname()} pid {who}")
        assert read_run(run).status == status
    (run / ".lock").write_text("somebody@elsewhere pid 1")
    assert read_run(run).status == "running", "nothing is known of another machine"


def gone() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"schema": 2, "status": "finished"}', '{"schema": 1}',
        '{"schema": 1, "status": "finished", "test": {"bpd": {"mean": "low"}}}',
        '{"schema": 1, "status": "finished", "test": {"bpd": 5}}',
        '{"schema": 1, "status": "finished", "overrides": 3}', '{"schema": 1, "status": ["finished"]}',
        "[" * 100_000, "\udcff",
    ],
)  # fmt: skip
def test_malformed_summary_is_unreadable(tmp_path, text):
    path = make_run(tmp_path, "x0", 1, 2.0)
    (path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    run = read_run(path)
    assert (
        run.status == "unreadable"
        and run.error.startswith("summary.json: ")
        and "\n" not in run.error
    )
    assert run.overrides["objective"] == "x0"


@pytest.mark.parametrize("text", ["", "[]", '{"step": "many"}'])
def test_malformed_progress_is_ignored(tmp_path, text):
    path = make_run(tmp_path, "x0", 1, 2.0)
    (path / "progress.json").write_text(text)
    assert read_run(path).status == "finished"
    (path / "summary.json").unlink()
    assert read_run(path).status in ("running", "interrupted")


def test_malformed_curve_is_ignored(tmp_path):
    pairs = (([1, 2], [1]), (["a"], [1]), ([0.0] * 20_000,) * 2)  # the last: more than are drawn
    curves = (3, {}, *({"gamma": gamma, "epsilon_mse": mse} for gamma, mse in pairs))
    for i, curve in enumerate(curves):
        path = make_run(tmp_path / str(i), "x0", 1, 2.0, noise_levels=curve)
        assert read_run(path).status == "finished" and read_run(path).noise_levels is None


def test_find_runs_does_not_descend_into_runs(tmp_path):
    for name in ("a/seed=10", "a/seed=2", "b", "b/inner", ".hidden", "c/empty", "b.old-0a1b2c"):
        (tmp_path / name).mkdir(parents=True)
        if "empty" not in name:
            (tmp_path / name / "config.yaml").touch()
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == [
        "a/seed=2",
        "a/seed=10",
        "b",
    ]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
    assert {run.sweep for run in read_runs(tmp_path / "a")} == {"a"}


def test_history_reads_sparse_and_truncated_metrics_csv(tmp_path):
    run = read_run(next((sweep(tmp_path, {"v": 2.0}, seeds=(1,))).iterdir()))
    steps, values = run.history("val/bpd")
    assert steps == list(range(100, 801, 100)) and values == sorted(values, reverse=True)
    assert run.history("val/nothing") == run.history("bpd") == ([], [])
    with (run.dir / "metrics.csv").open("a") as file:
        file.write("900,,,1.")
    assert run.history("val/bpd")[0][-1] in (800, 900)
    with (run.dir / "metrics.csv").open("a") as file:
        file.write("5,45.0\n1000,")
    assert run.history("val/bpd")[0][-1] == 900


def test_parse_overrides_supports_hydra_syntax():
    expected = {"a": "1", "b.c": "x=y", "d": "removed", "e": ""}
    assert parse_overrides(["a=1", "+b.c=x=y", "~d", "++e="]) == expected


def test_run_left_before_start_is_interrupted(tmp_path):
    """The sweep that made the directory still lives; only the emptied lock tells of the end."""
    run = RunDirectory(start_run(tmp_path, "v", 1, ["objective=v"], {"objective": "v"}))
    with run.lock():
        pass
    assert read_run(run.path).status == "running"  # about to begin
    run.clear_owner()
    assert read_run(run.path).status == "interrupted"
    with run.lock():
        run.clear_owner()  # somebody else has begun
        assert read_run(run.path).status == "running"


def test_null_figure_does_not_hide_other_figures(tmp_path):
    figures = metrics(2.0) | {"bpd_ode": {"mean": None, "stderr": None, "n": 64}}
    read = read_run(make_run(tmp_path, "v", 1, 2.0, test=figures))
    assert read.status == "finished" and read.bound == 2.0 and math.isnan(read.test["bpd_ode"].mean)


def test_a_cell_that_is_a_link_is_not_read(tmp_path):
    """It may lead anywhere."""
    sweep = make_runs(tmp_path / "sweep", {"v": {1: 2.0}})
    elsewhere = make_run(tmp_path / "elsewhere", "x0", 1, 2.0)
    (sweep / "linked").symlink_to(elsewhere)
    (sweep / "latest").symlink_to(next(sweep.glob("*seed=1")))
    assert len(read_study([sweep]).runs) == 1
    assert len(read_study([sweep / "linked"]).runs) == 1, "whoever names it wants it read"
    assert read_study([sweep / "linked"]).counts["finished"] == 1


def test_runs_are_sorted_by_numbers_as_numbers():
    rates = ["lr=1e-05", "lr=0.0003", "lr=3e-3", "lr=0.01", "lr=0.3", "lr=2", "lr=10"]
    assert sorted(sorted(rates), key=natural_key) == rates
