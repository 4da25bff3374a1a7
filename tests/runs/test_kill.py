"""SIGKILL at random moments, the same command until it is through: the figures of an undisturbed run."""

import csv
import json
import random
import subprocess
import sys
import time

import pytest
import torch

from tests.runs.commands import command, environment

KILLS = 20


def rows(path) -> list[dict]:
    """metrics.csv without its clock."""
    with open(path / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("train/images_per_second", "time")}
            for row in csv.DictReader(file)
        ]


def kill(line: list[str], root, folder, fitting: bool, delay: float) -> bool:
    """Kill the command ``delay`` seconds after it has begun, or has begun to fit; False if it was through."""
    with open(root / "output", "ab") as log:
        began = time.time()
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment(root))
    while fitting and process.poll() is None:
        where = at(folder)
        if where["updated"] > began and where["stage"] in ("fit", "test"):
            break
        time.sleep(0.01)
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def at(folder) -> dict:
    """Where the run says that it is."""
    try:
        return json.loads((folder / "progress.json").read_text())
    except OSError:
        return {"stage": "import", "step": 0, "updated": 0.0}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_leave_no_trace(root):
    long = (
        *("trainer.max_steps=60", "trainer.val_check_interval=5", "denoiser.network.dropout=0.2"),
        *("denoiser.network.width=64", "denoiser.network.blocks=3"),
    )
    whole = command("name=whole", *long)
    began = time.monotonic()
    subprocess.run(whole, check=True, env=environment(root), capture_output=True)
    took = time.monotonic() - began
    first = json.loads((root / "logs" / "runs" / "whole" / "summary.json").read_text())
    fit = first["seconds"]["fit"]
    broken, folder = command("name=broken", *long), root / "logs" / "runs" / "broken"
    chance = random.Random(0)
    kills: list[tuple[str, int]] = []
    while len(kills) < KILLS:
        # a quarter anywhere, from the first import to the last sample; the others where something is at stake
        anywhere = len(kills) % 4 == 3
        delay = chance.uniform(0.05, 0.95) * took if anywhere else chance.uniform(0.0, 0.16) * fit
        if kill(broken, root, folder, not anywhere, delay):
            kills.append((at(folder)["stage"], last_step(folder)))
        else:
            (folder / "summary.json").unlink()  # it was through: its end is done again
    done = subprocess.run(broken, capture_output=True, text=True, env=environment(root))
    assert done.returncode == 0, done.stderr
    print("killed in (stage, step of the last checkpoint):", kills, file=sys.stderr)
    assert len({step for stage, step in kills if stage == "fit"}) > 3, "the kills were to fall into the fit"
    second = json.loads((folder / "summary.json").read_text())
    for key in ("train", "val", "test", "noise_levels", "steps", "checkpoint"):
        assert first[key] == second[key], key
    assert sorted(p.name for p in (root / "logs" / "runs").iterdir()) == ["broken", "whole"]
    assert rows(root / "logs" / "runs" / "whole") == rows(folder)
    steps = [int(row["step"]) for row in rows(folder)]
    assert steps == sorted(set(steps)) and len(steps) == 61
    assert not list(folder.rglob(".*.tmp"))


def last_step(folder) -> int:
    """Of the checkpoint that a continuation would start from."""
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0
