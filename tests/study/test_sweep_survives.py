"""Sweeps that are killed, repeated, failing or interrupted keep finished runs and resume."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.run.accidents import results
from tests.run.commands import at_work, command, environment, wait_for
from triptych.run import processes

GRID = ["objective=x0,epsilon,v", "seed=1,2,3,4"]


def sweep(*arguments: str, launcher: str = "local") -> list[str]:
    chosen = [f"hydra/launcher={launcher}"] if launcher else []
    return command("-m", *chosen, "name=s", *arguments)


def start(line: list[str], root) -> subprocess.Popen:
    """Start a command in its own process group, as a shell would."""
    with open(root / "output", "ab") as log:
        return subprocess.Popen(
            line, stdout=log, stderr=log, env=environment(root), start_new_session=True
        )


def summaries(root) -> dict:
    """Return {cell: (time of writing, summary)}."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, json.loads(path.read_text()))
        for path in (root / "logs" / "sweeps").glob("*/*/summary.json")
    }


def killed_twice(line: list[str], root, at_least: tuple[int, int], rest) -> tuple[dict, dict, dict]:
    """Kill the sweep's parent alone, and then its whole process group; repeat the command.

    ``rest(folder)`` is the pause after each kill, in which its jobs notice. Returns the summaries
    of an undisturbed sweep, those of this one, and those that were there when it was killed.
    """
    quiet, noisy = root / "quiet", root / "noisy"
    for folder in (quiet, noisy):
        folder.mkdir()
    assert start(line, quiet).wait() == 0, (quiet / "output").read_text()
    finished: dict = {}
    for kill, least in zip((os.kill, os.killpg), at_least, strict=True):
        process = start(line, noisy)
        wait_for(lambda n=least: len(summaries(noisy)) >= n, process)
        time.sleep(1.0)  # the next ones are under way
        assert at_work(noisy)
        kill(process.pid, signal.SIGKILL)
        process.wait()
        finished = {**summaries(noisy), **finished}
        rest(noisy)
    assert start(line, noisy).wait() == 0, (noisy / "output").read_text()
    return summaries(quiet), summaries(noisy), finished


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sweep_killed_twice_matches_undisturbed_sweep(root):
    rest = lambda noisy: wait_for(lambda: not at_work(noisy), None, 30.0)  # noqa: E731
    first, second, finished = killed_twice(sweep(*GRID), root, (2, 6), rest)
    assert len(first) == len(second) == 12 and len(finished) >= 6
    for name, (stamp, _) in finished.items():
        assert second[name][0] == stamp, f"{name} was computed twice"
    for name, (_, summary) in first.items():
        for split in ("train", "val", "test"):
            assert second[name][1][split] == summary[split], name
    assert results(root / "quiet/logs/sweeps/s") == results(root / "noisy/logs/sweeps/s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_same_sweep_started_twice_shares_cells(root):
    """One job of each cell runs it; the other reports who is at work, without a failure."""
    grid = ["seed=1,2", "trainer.max_steps=3000", "trainer.val_check_interval=1500"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    line, env = sweep(*grid, launcher=""), environment(root)
    pair = [subprocess.Popen(line, env=env, **both) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in pair]
    codes = sorted(process.returncode for process in pair)
    found = summaries(root)
    assert len(found) == 2 and all(s["status"] == "finished" for _, s in found.values()), said
    assert codes in ([0, 0], [0, 75]), said  # 75: the other one was still at work when it ended
    assert any(
        f"@{os.uname().nodename} pid " in text and "is running it" in text for text in said
    ), said
    assert len(list((root / "logs" / "sweeps").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, asked", [("", signal.SIGINT), ("local", signal.SIGINT), ("local", signal.SIGTERM)]
)
def test_interrupted_sweep_prints_one_line_and_saves_checkpoint(root, asked, launcher):
    """Ctrl-C reaches the terminal's whole process group, kill a single process."""
    line = sweep(
        "seed=1,2", "trainer.max_steps=2000", "trainer.val_check_interval=1000", launcher=launcher
    )
    process = start(line, root)

    def fitting():
        found = [json.loads(p.read_text()) for p in root.rglob("progress.json")]
        return any(one["stage"] == "fit" and one["step"] > 0 for one in found)

    wait_for(fitting, process)
    (os.killpg if asked == signal.SIGINT else os.kill)(process.pid, asked)
    assert process.wait(40) == 128 + asked
    said = [text for text in (root / "output").read_text().splitlines() if text.strip()]
    assert said[-1] == f"interrupted ({asked.name}); repeat the same command to resume", said
    assert not any("Traceback" in text or "rror" in text for text in said), said
    # A worker notices it within a second, and its job saves a step.
    wait_for(lambda: not at_work(root), None, 40.0)
    assert list(root.rglob("last.ckpt")), "the job saved the step it was in"
    assert not list(root.rglob("summary.json"))
    if asked == signal.SIGINT:
        logs = [path.read_text() for path in root.rglob("train.log")]
        assert any(f"({asked.name}); repeat the same command" in log for log in logs), logs


def test_stop_below_without_ps_does_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    processes.stop_descendants({os.getpid()})


def test_job_of_dead_sweep_ends_at_once(tmp_path):
    """A worker may start a job just after the sweep was killed."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = (
        "from triptych.run import jobs; from pathlib import Path; jobs.PROGRAM = ['sleep', '600']; "
        f"jobs.run_job('resume=DIR', Path({str(tmp_path / 'log')!r}))"
    )
    environ = os.environ | {"TRIPTYCH_SWEEP": str(gone.pid)}
    worker = subprocess.run([sys.executable, "-c", code], env=environ, timeout=60)
    assert worker.returncode == 1
