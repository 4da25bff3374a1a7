"""The end of a sweep: its exit code, the names of unfinished runs, a report that fails."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tests.study.fake_runs import edit, failed, make_run, start_run, sweep_hook
from triptych.errors import Busy, Diverged, StorageError, UserError
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import PRUNE, RunDirectory
from triptych.study import render, sweep
from triptych.study.render import write_report
from triptych.study.sweep import SweepHook, sweep_exit_code
from triptych.study.sweep_plan import RecordBackup


@pytest.fixture
def hook(root, monkeypatch):
    """The hook of this process's sweep over one objective, for runs that a test makes."""
    found = sweep_hook(root, optimized_metric="val.bpd.mean")
    found.monitor, found.backup = SimpleNamespace(stop=lambda: None), RecordBackup(found.root)
    monkeypatch.setattr(sweep, "_hooks", [found])
    return found


def add(hook: SweepHook, end: str) -> RunDirectory:
    """Make one more run with this end."""
    seed = len(hook.cells) + 1
    told, choices = [f"objective=x0,seed={seed}"], {"data": "digits", "objective": "x0"}
    if end == "finished":
        folder = make_run(hook.root, "x0", seed, 2.0)
    elif end in ("interrupted", "pruned"):
        folder = start_run(hook.root, "x0", seed, told, choices)
        if end == "pruned":
            (folder / PRUNE).touch()
    else:
        folder = failed(hook.root, "x0", seed, "it rained")
        edit(folder / "summary.json", status=end)
    hook.cells.append(folder.name)
    return RunDirectory(folder)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (["finished", "finished"], 0),
        (["finished", "diverged"], 3),
        (["diverged"], 3),
        (["finished", "failed", "diverged"], 1),
        (["finished", "interrupted"], 1),
        (["failed", "pruned"], 1),
        (["finished", "pruned"], 0),
    ],
)
def test_sweep_exit_code_reflects_status_of_runs(hook, ends, code):
    for end in ends:
        add(hook, end)
    assert sweep_exit_code() == code


def test_expected_counts_cells_of_earlier_commands(hook):
    """A second command, of another setting in the same directory."""
    for _ in range(2):
        add(hook, "finished")
    hook.cells[:] = ["objective=v,seed=1", "objective=v,seed=2"]
    hook.expect([["objective=v", "seed=3"]])
    assert hook.facts["expected"] == 2 + 3


def test_sweep_exit_code_is_75_if_run_is_locked(hook):
    add(hook, "finished")
    with add(hook, "interrupted").lock():
        assert sweep_exit_code() == 75


def test_sweep_exit_code_is_1_if_run_was_not_replaced(hook):
    """With force=true, a run that cannot be built leaves the earlier one in its place."""
    run = add(hook, "finished")
    hook.replaced = {run.provenance.id}
    assert sweep_exit_code() == 1


def test_sweep_that_replaced_no_run_keeps_its_records(hook, capsys):
    """With force=true, when none of its runs can be built."""
    run = add(hook, "finished")
    hook.record(expected=1)
    write_report(hook.root)
    before = {path: path.read_bytes() for path in hook.root.glob("*.*")}
    hook.backup, hook.replaced = RecordBackup(hook.root), {run.provenance.id}
    hook.record(expected=1, title="another")
    (hook.root / "multirun.yaml").write_text("seed: 2\n")
    hook.on_multirun_end(hook.config)
    assert {path: path.read_bytes() for path in hook.root.glob("*.*")} == before
    assert "force=true replaced no run" in capsys.readouterr().err


def test_forced_sweep_in_rounds_executes_each_run_once(hook, monkeypatch):
    """A later round of until=decided has the runs of the first one, too."""
    monkeypatch.setattr(sweep, "plan_cells", lambda *_: {})
    earlier, fresh = add(hook, "finished"), add(hook, "finished")
    for run, identity in ((earlier, "a" * 16), (fresh, "b" * 16)):
        edit(run / "provenance.json", id=identity)
    hook.config = OmegaConf.merge(
        hook.config, {"force": True, "hydra": {"sweeper": {"_target_": "RoundsSweeper"}}}
    )
    hook.done, hook.replaced = set(), {RunDirectory(earlier.path).provenance.id}
    new = SweepHook.plan(hook, [["objective=x0", f"seed={seed}"] for seed in (1, 2)])
    assert [*new] == [earlier.path.name]


def test_job_killed_before_start_is_reported_as_interrupted(hook, capsys):
    """The sweep's own process made the directory, and is alive."""
    add(hook, "finished")
    with add(hook, "interrupted").lock():
        pass
    hook.on_multirun_end(hook.config)
    said = capsys.readouterr().out
    assert "1 of 2 runs finished, 1 interrupted" in said and "running" not in said


def test_report_after_ctrl_c_counts_interrupted_run(hook):
    """The last report is older than that run; after Ctrl-C, ``clear_owner`` renews the report.

    Hydra calls the other hook only at the end of a sweep.
    """
    hook.record(expected=2)
    add(hook, "finished")
    report = write_report(hook.root).html
    assert "1 of 2 runs finished, 1 not started" in report.read_text()
    with (run := add(hook, "interrupted")).lock():
        pass
    run.clear_owner()  # as its process, which has ended
    hook.end_monitoring()
    assert "1 of 2 runs finished, 1 interrupted (the same command resumes it)" in report.read_text()


@pytest.mark.parametrize("how", ["a directory in its place", "a fault of the report's own"])
def test_unfinished_sweep_with_failed_report_names_runs_and_error(hook, monkeypatch, capsys, how):
    """Hydra turns an exception of a callback into a warning."""
    add(hook, "finished")
    add(hook, "interrupted")
    if how == "a directory in its place":
        (hook.root / "report.html").mkdir()
    else:
        monkeypatch.setattr(render, "read_study", lambda *_: 1 / 0)
    with suppress(Exception):
        hook.on_multirun_end(hook.config)
    assert sweep_exit_code() == 1
    said = capsys.readouterr()
    assert "objective=x0,seed=2: did not end" in said.out
    [line] = [text for text in said.err.splitlines() if "the report cannot be written" in text]
    assert line.startswith(f"error: {hook.root}: ")


def test_finished_sweep_with_failed_report_exits_with_1(hook, capsys):
    add(hook, "finished")
    (hook.root / "report.html").mkdir()
    hook.on_multirun_end(hook.config)
    assert "the report cannot be written" in capsys.readouterr().err and sweep_exit_code() == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Diverged("the loss", 5), 3, "error: diverged at step 5: the loss is not finite"),
        (StorageError("x: cannot be written"), 74, "error: x: cannot be written"),
        (
            Busy("x: another process is using it"),
            75,
            "error: x: another process is using it",
        ),
        (UserError("x=1: 2 is accepted"), 1, "error: x=1: 2 is accepted"),
        # Another user's runs raise such an error.
        (PermissionError(13, "No", "/x.yaml"), 74, "error: /x.yaml: cannot be opened (No)"),
        # Ray raises it: its wait for jobs swallows what a signal's handler raises.
        (KeyboardInterrupt(), 130, "interrupted (SIGINT); repeat the same command to resume"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_line_errors_maps_error_to_exit_code_and_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as ended, one_line_errors("train"):
        raise error
    assert ended.value.code == code and capsys.readouterr().err == f"{line}\n"


def test_job_without_result_is_reported_by_slurm_id(hook, capsys):
    """One job was cancelled, and another had its result before it ended."""
    add(hook, "interrupted")
    assert hook.job_without_result("17_0", ["objective=x0", "seed=1"], "cancelled") is None
    said = capsys.readouterr().err
    assert said == (
        "objective=x0,seed=1: its SLURM job 17_0 ended without a result (cancelled); "
        "repeat the same command to resume it\n"
    )
    add(hook, "finished")
    assert hook.job_without_result(
        "17_1", ["objective=x0", "seed=2"], "completed"
    ) == pytest.approx(1.99)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ours", [False, True])
def test_launcher_error_is_one_line_and_run_error_is_raised(capsys, ours):
    """Ray raises a plain Exception when its processes do not start."""

    def function(module: str, text: str):
        names = {"__name__": module}
        exec(f"def call(then): {text}", names)
        return names["call"]

    start = function("ray._private.node", 'raise Exception("the node timed out")')
    launch = function("hydra_plugins.hydra_ray_launcher.ray_launcher", "then(None)")
    run = function("triptych.run.execute", "then(None)")
    with pytest.raises(Exception if ours else SystemExit) as ended, one_line_errors("train"):
        launch((lambda _: run(start)) if ours else start)
    assert str(ended.value) == ("the node timed out" if ours else "1")
    assert capsys.readouterr().err == ("" if ours else "error: the node timed out\n")
