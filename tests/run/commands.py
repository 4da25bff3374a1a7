"""Commands as a person types them, for tests that start, kill and watch them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import TINY
from triptych.config.compose import compose_command, without_hydra
from triptych.run.jobs import SERVE


def command(*arguments: str) -> list[str]:
    """Return the command line of ``triptych-train`` on a tiny run, without W&B."""
    given = {a.split("=")[0] for a in arguments}
    tiny = [o for o in TINY if o.split("=")[0] not in given]
    return [sys.executable, "-m", "triptych.cli.train", *arguments, "logger=csv", *tiny]


def evaluated(ckpt: Any, *overrides: str) -> dict[str, Any]:
    """Run ``triptych-evaluate`` in this process and return its output."""
    from triptych.cli.evaluate import evaluate_composed

    return evaluate_composed(
        without_hydra(compose_command("evaluate", [f"ckpt='{ckpt}'", *overrides]))
    )


def environment(root: Path, **more: str) -> dict[str, str]:
    """Return such a command's environment: its own root, and one thread."""
    return os.environ | {"TRIPTYCH_ROOT": str(root), "OMP_NUM_THREADS": "1"} | more


def problems(stderr: str) -> list[str]:
    """Return a command's lines on stderr, without a run's notes and progress."""
    notes = ("lr_schedule.warmup_steps=", "step ", "resumed at ")
    return [line for line in stderr.splitlines() if line.strip() and not line.startswith(notes)]


def start(line: list[str], root: Path, **more: str) -> subprocess.Popen:
    """Start such a command in the background; ``communicate`` returns its output."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, env=environment(root, **more), stdout=pipe, stderr=pipe, text=True
    )


def end(
    line: list[str], root: Path, code: int | None = 0, **more: str
) -> subprocess.CompletedProcess:
    """Run such a command to its end and check its exit code; None: any code."""
    surroundings = environment(root, **more)
    done = subprocess.run(line, capture_output=True, text=True, env=surroundings, timeout=800)
    assert code is None or done.returncode == code, done.stderr
    return done


def at_work(root: Path) -> list[str]:
    """Return the processes of sweeps' jobs under this root, by their environment.

    The title of a process does not tell forks apart.
    """
    listed = subprocess.run(
        ["ps", "axeww", "-o", "pid,args"], capture_output=True, text=True
    ).stdout
    return [
        row for row in listed.splitlines() if SERVE in row and f"TRIPTYCH_ROOT={root} " in f"{row} "
    ]


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen | None, seconds: float = 600.0
) -> Any:
    """Wait until ``condition`` is true and return its value.

    An error if the process ends before, or if time is up.
    """
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        assert process is None or process.poll() is None, "it ended"
        time.sleep(0.02)
    return found
