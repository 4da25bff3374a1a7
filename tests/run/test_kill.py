"""SIGKILL at random moments: the repeated command ends with the figures of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.run.accidents import results, table
from tests.run.commands import command, end, environment
from triptych.run.directory import RunDirectory

KILLS = int(os.environ.get("KILLS") or 30)
STEPS = 240
LONG = (
    *(f"trainer.max_steps={STEPS}", "trainer.val_check_interval=5", "denoiser.network.dropout=0.2"),
    *("denoiser.network.width=32", "denoiser.network.blocks=2", "data.batch_size=48"),
)


def at(folder) -> dict:
    """Return the progress that the run has recorded."""
    try:
        return json.loads((folder / "progress.json").read_text())
    except OSError:
        return {"stage": "import", "step": 0, "updated": 0.0}


def descendants(pid: int) -> list[int]:
    """Return all processes below ``pid``, the nearest first."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        return []
    return found + [lower for child in found for lower in descendants(child)]


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def words(pid: int) -> str:
    """Return a process's command line."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def strike(line, root, folder, moment: str, whom: str, delay: float, chance: random.Random) -> str:
    """Start the command, and kill ``whom`` ``delay`` seconds after ``moment``.

    Returns the run's stage at that time.
    """
    with open(root / "output", "ab") as log:
        began = time.time()
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment(root))

    def is_there() -> bool:
        where = at(folder)
        if moment == "fit":
            return where["updated"] > began and where["stage"] in ("fit", "test")
        if moment == "anywhere":
            return True
        begun = (folder.parent / "sweep.json").stat().st_mtime > began
        return (
            begun and (folder / "summary.json").exists()
        )  # if finished before, the report is next

    while not is_there() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(delay)
        return "through"
    except subprocess.TimeoutExpired:
        pass
    below, stage = descendants(process.pid), at(folder)["stage"]
    ours = [pid for pid in below if "triptych.cli.train" in words(pid)] or [process.pid]
    stage = "report" if (folder / "summary.json").exists() else stage
    kill({"all": [process.pid, *below], "sweep": [process.pid], "one": [chance.choice(ours)]}[whom])
    process.wait(120)
    until = time.monotonic() + 60
    while not all(map(is_gone, below)):
        assert time.monotonic() < until, "somebody outlives the command"
        time.sleep(0.05)
    return stage


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_sweep_killed_repeatedly_ends_like_undisturbed_one(root, processes):
    """Kill all processes of a sweep, its first one, or one of a run's.

    This happens in the fit, at any time, and during the report.
    """
    several = ["trainer=ddp_sim", f"trainer.devices={processes}"] if processes > 1 else []
    line, whole, broken = (
        command("-m", "name=s", "seed=1", *several, *LONG),
        root / "whole",
        root / "broken",
    )
    whole.mkdir()
    broken.mkdir()
    began = time.monotonic()
    end(line, whole)
    took = time.monotonic() - began
    [undisturbed] = whole.glob("logs/sweeps/*/seed=1")
    folder = broken / undisturbed.relative_to(whole)
    first = json.loads((undisturbed / "summary.json").read_text())
    chance = random.Random(processes)
    kills: list[tuple[str, str, int]] = []
    for _ in range(5 * KILLS):  # some come too late
        if len(kills) == KILLS:
            break
        done = len(kills) / KILLS
        moment = (
            "fit" if done < 0.4 else "anywhere" if done < 0.7 else "report"
        )  # once through, it is
        most = {"fit": 0.12 * first["seconds"]["fit"], "anywhere": took, "report": 0.1 * took}[
            moment
        ]
        whom = chance.choice(["all", "one", "one", "sweep"])
        stage = strike(line, broken, folder, moment, whom, chance.uniform(0.0, most), chance)
        assert RunDirectory(folder).status in ("new", "interrupted", "finished"), kills
        if stage != "through":
            kills.append((stage, whom, last_step(folder)))
        if moment != "report" or chance.random() < 0.5:
            (folder / "summary.json").unlink(
                missing_ok=True
            )  # it was through: its end is done again
    assert len(kills) == KILLS, kills
    end(line, broken)
    print(f"{processes} processes, killed in (stage, whom, last step):", kills, file=sys.stderr)
    second = json.loads((folder / "summary.json").read_text())
    assert second["status"] == "finished"
    for key in ("train", "val", "test", "noise_levels", "steps", "checkpoint"):
        assert first[key] == second[key], key
    states = [
        torch.load(p / "checkpoints" / "last.ckpt", weights_only=True)
        for p in (undisturbed, folder)
    ]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert table(undisturbed) == table(folder)
    assert results(undisturbed.parent) == results(folder.parent)
    steps = [int(row["step"]) for row in table(folder)]
    assert steps == sorted(set(steps)) and len(steps) == STEPS + 1
    assert not list(folder.rglob(".*.tmp"))
    assert len({step for stage, _, step in kills if stage == "fit"}) > min(3, KILLS // 4)
    assert any(stage == "report" for stage, _, _ in kills), (
        "some of the kills were to fall into the report"
    )


def last_step(folder) -> int:
    """Return the last step of the checkpoint from which a run would resume."""
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0
