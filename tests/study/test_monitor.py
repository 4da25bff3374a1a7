"""The live table of a sweep: each run's position, speed, time left and bound; also in a log."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.run.accidents import column
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.progress import WINDOW, Progress
from triptych.run.read import read_position
from triptych.study.monitor import Monitor, progress_text, run_label, try_write_report

AT_WORK = {"stage": "fit", "step": 1200, "max_steps": 4000, "steps_per_second": 35.0, "bound": 2.31}


def at_work(root, name: str, **more) -> RunDirectory:
    run = RunDirectory(root / name)
    run.path.mkdir(parents=True)
    (run / "config.yaml").write_text("a: 1\n")
    run.write("progress.json", AT_WORK | {"updated": time.time()} | more)
    return run


def finished(root, name: str) -> None:
    run = at_work(root, name)
    run.write("summary.json", {"schema": 1, "status": "finished"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "fit 1200/4000, val 2.310, 35/s, 1 min 20 s left"),
        ({"steps_per_second": 0.5}, "fit 1200/4000, val 2.310, 0.5/s, 1 h 33 min left"),
        ({"steps_per_second": None, "bound": None}, "fit 1200/4000"),
        ({"updated": 0.0}, "stalled or interrupted 1200/4000, val 2.310"),
    ],
)
def test_progress_text_describes_position_of_run(tmp_path, more, said):
    assert progress_text(read_position(at_work(tmp_path, "run", **more).path)) == said


def test_steps_per_second_is_of_last_minute(tmp_path, monkeypatch):
    """After ten steps a second, one step a second: the present speed is shown, within a few %."""
    run, now = RunDirectory(tmp_path), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress, step = Progress(run), 0
    for rate in (10, 1):
        for _ in range(int(2 * WINDOW)):
            progress.write("fit", step, 10_000, bound=math.pi)
            now[0] += 1.0
            step += rate
        progress.write("fit", step, 10_000, bound=math.pi)
        found = json.loads((run / "progress.json").read_text())
        assert (
            found["steps_per_second"] == pytest.approx(rate, rel=0.2) and found["bound"] == math.pi
        )


def test_progress_json_records_speed_and_validation_bound(prepared, monkeypatch):
    written = []
    write = RunDirectory.write

    def kept(run, name, value):
        written.append(value) if name == "progress.json" else None
        write(run, name, value)

    monkeypatch.setattr(RunDirectory, "write", kept)
    monkeypatch.setattr("triptych.run.progress.WRITE_INTERVAL", 0.0)
    run = prepared()
    execute(run)
    fit = [one for one in written if one["stage"] == "fit"]
    assert [one["step"] for one in fit] == [0, 1, 2, 3, 4, 5, 6]
    assert all(one["steps_per_second"] > 0 for one in fit[1:])
    validated = column(run, "val/bound")
    assert math.isnan(fit[2]["bound"]) and fit[-1]["bound"] == pytest.approx(validated[0], rel=1e-6)


def grid(root) -> list[str]:
    """Make 40 runs: 14 ended, 20 at work (the first one stalled), and 6 that wait."""
    cells = []
    for objective in ("epsilon", "a_new_objective"):
        for rate in ("0.0001", "0.0003", "0.001", "0.003"):
            cells += [f"objective={objective},optimizer.lr={rate},seed={s}" for s in range(1, 6)]
    for cell in cells[:34]:
        at_work(root, cell, **{"updated": 0.0} if cell == cells[14] else {})
    for i, cell in enumerate(cells[:14]):
        status = "diverged" if i < 3 else "finished"
        (root / cell / "summary.json").write_text(json.dumps({"schema": 1, "status": status}))
    return cells


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (80, 10)])
def test_live_table_fits_terminal_with_runs_at_work_first(tmp_path, width, height):
    monitor = Monitor(tmp_path, grid(tmp_path))
    title, *rows, ended, total = monitor.lines(width, height)
    assert title == tmp_path.name and ended == "11 finished, 3 diverged"
    assert total.startswith("14 of 40 runs, ") and total.endswith(" left")
    assert len(rows) == min(20, height - 4) and max(map(len, rows)) <= width
    assert ("stalled" in rows[-1]) == (height >= 24)
    assert not any("stalled" in row for row in rows[:-1])
    seeds = [row.partition("seed=")[2][0] for row in rows]
    assert seeds[:5] == list("12345")
    assert all(" 1200/4000, val 2.310" in row and " left" in row for row in rows[:-1])


def test_live_table_leaves_out_middle_of_long_name():
    name = f"data={'x' * 20},model={'y' * 20},seed=12,trainer.max_steps=7"
    whole = f"{'x' * 20} / {'y' * 20} / max_steps=7 / seed=12"
    assert run_label(name, 99) == whole and run_label("seed=12", 3) == "seed=12"
    assert run_label(name, 29) == f"{'x' * 20}…_steps=7 / seed=12"


def test_time_left_follows_from_progress_of_all_runs(tmp_path, monkeypatch):
    """In 60 s one of 4 runs has finished and another is half done: 1.5 take 60 s, 2.5 100 s."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("triptych.study.monitor.time", clock)
    cells = [f"seed={i}" for i in range(6)]
    monitor = Monitor(tmp_path, cells, done={*cells[4:]})
    assert monitor.lines(80, 24)[1:] == ["none has ended", "0 of 6 runs"]
    for cell in (cells[0], *cells[4:]):
        finished(tmp_path, cell)
    at_work(tmp_path, cells[1], step=2000)
    now[0] += 60
    assert monitor.lines(80, 24)[-2:] == ["3 finished", "3 of 6 runs, 1 min 40 s left"]


def test_monitor_without_terminal_prints_line_per_ended_run(tmp_path, monkeypatch, capsys):
    """Runs that had finished before are listed at the end."""
    for i in range(2):
        at_work(tmp_path, f"cell={i}")
    finished(tmp_path, "cell=2")
    cells = [f"cell={i}" for i in range(3)]
    monitor = Monitor(tmp_path, cells, done={*cells[2:]}, every=0.1)
    monkeypatch.setattr(monitor, "_rewrite_report_if_due", lambda: None)
    monitor.start()
    time.sleep(0.3)
    run = RunDirectory(tmp_path / "cell=0")
    run.write("summary.json", {"schema": 1, "status": "failed", "error": "no room"})
    time.sleep(0.3)
    monitor.stop()
    line, before = capsys.readouterr().err.splitlines()
    assert line.isprintable() and line.startswith("[1/3] cell=0: ") and "failed: no room" in line
    assert before.startswith("[2/3] cell=2: finished before, ")


def test_monitor_prints_each_cause_once(tmp_path, capsys):
    for seed in range(1, 6):
        run = at_work(tmp_path, f"seed={seed}")
        error = f"diverged at step {seed}: the loss is not finite"
        record = {"schema": 1, "status": "diverged", "step": seed, "error": error}
        run.write("summary.json", record if seed != 3 else record | {"error": "other"})
    monitor = Monitor(tmp_path, [f"seed={seed}" for seed in range(1, 6)])
    monitor.start()
    monitor.stop()
    first, second, third, *_, last = capsys.readouterr().err.splitlines()
    assert first == "[1/5] seed=1: diverged: diverged at step 1: the loss is not finite"
    assert second == "[2/5] seed=2: diverged, as [1/5]"
    assert third == "[3/5] seed=3: diverged: other"
    assert last == "[5/5] seed=5: diverged, as [1/5]"


def test_monitor_writes_report_for_small_share_of_time(tmp_path, monkeypatch):
    """A run ends each second and a report takes two, so reports take one second in 30 at most."""
    now, begun = [0.0], []

    def write(root):
        begun.append(now[0])
        now[0] += 2.0

    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("triptych.study.monitor.time", clock)
    monkeypatch.setattr("triptych.study.monitor.try_write_report", write)
    monitor = Monitor(tmp_path, [f"cell={i}" for i in range(150)])
    for i in range(150):
        finished(tmp_path, f"cell={i}")
        now[0] += 1.0
        monitor._rewrite_report_if_due()
    assert begun[0] == 1.0 and len(begun) == 3 and min(np.diff(begun)) >= 60


def test_try_write_report_does_not_recreate_deleted_sweep(tmp_path):
    assert "No such file or directory" in try_write_report(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
