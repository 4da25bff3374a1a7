"""A sweep through Ray: killed, stopped by Ctrl-C, repeated; and on a running cluster."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.run.commands import at_work, command, end, environment
from tests.study.test_sweep_survives import start, summaries, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LONG = ["trainer.max_steps=1500", "trainer.val_check_interval=100"]


@pytest.fixture(autouse=True)
def cluster_that_is_gone(monkeypatch):
    """Ray remembers the last cluster, and tries it if a sweep names none."""
    short = "/tmp"  # for sockets lie there
    with tempfile.TemporaryDirectory(dir=short, ignore_cleanup_errors=True) as place:
        monkeypatch.setenv("RAY_TMPDIR", place)
        record = Path(place) / "ray" / "ray_current_cluster"
        record.parent.mkdir()
        record.write_text("192.0.2.1:6379")
        yield


def sweep(*arguments: str) -> list[str]:
    return command("-m", "hydra/launcher=ray_tasks", "name=s", "seed=1,2,3,4", *LONG, *arguments)


def is_at_work(root) -> bool:
    """Return whether a run has finished and another one is under way."""
    begun = [json.loads(p.read_text())["step"] for p in root.rglob("progress.json")]
    return bool(summaries(root)) and any(100 < step < 1500 for step in begun)


@pytest.mark.parametrize("how", ["kill", "ctrl-c"])
def test_ray_sweep_resumes_after_kill_or_ctrl_c(root, how):
    process = start(sweep(), root)
    wait_for(lambda: is_at_work(root), process)
    assert at_work(root)
    (os.kill if how == "kill" else os.killpg)(
        process.pid, signal.SIGKILL if how == "kill" else signal.SIGINT
    )
    assert process.wait(60) == (-signal.SIGKILL if how == "kill" else 130)
    until = time.monotonic() + 40
    while at_work(root) and time.monotonic() < until:
        time.sleep(0.2)
    assert not at_work(root), "jobs outlive their sweep"
    finished = summaries(root)
    assert 0 < len(finished) < 4
    again = start(sweep(), root)
    assert again.wait(300) == 0, (root / "output").read_text()
    assert {k: v for k, v in summaries(root).items() if k in finished} == finished
    assert len(summaries(root)) == 4
    twin = root / "twin"
    end(command("name=twin", *LONG, "seed=4"), twin)
    [undisturbed] = [json.loads(p.read_text()) for p in twin.rglob("summary.json")]
    assert summaries(root)["seed=4"][1]["test"] == undisturbed["test"]


def test_sweep_runs_on_existing_ray_cluster(root):
    """The cluster's processes have another environment, and import no module of its folder.

    The runs use no more than their cores.
    """
    for name in ("hydra", "torch"):
        (root / f"{name}.py").write_text(f"open({str(root / 'mark')!r}, 'w')")
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("TRIPTYCH", "OMP"))}
    trusting = {
        "RAY_AUTH_MODE": "disabled"
    }  # by address, Ray does not find the token that it made itself
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    line = [ray, "start", "--head", f"--port={address.split(':')[1]}", *flags]
    with open(root / "cluster", "wb") as log:
        cluster = subprocess.Popen(line, stdout=log, stderr=log, cwd=root, env=alone | trusting)
    try:
        wait_for(lambda: "Ray runtime started" in (root / "cluster").read_text(), cluster)
        place = [
            f"hydra.launcher.ray.init.address='{address}'",
            "hydra.launcher.ray.remote.num_cpus=2",
        ]
        asked = [
            a
            for a in command("-m", "hydra/launcher=ray_tasks", *place, "seed=1,2")
            if a != "threads=1"
        ]
        surroundings = environment(
            root, **trusting, PYTHONSAFEPATH="1"
        )  # as the installed command has it
        done = subprocess.run(
            asked, capture_output=True, text=True, env=surroundings, cwd=root, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert len(list(root.rglob("summary.json"))) == 2 and not (root / "mark").exists()
        assert all("\nthreads: 2\n" in p.read_text() for p in root.rglob("config.yaml"))
    finally:
        cluster.terminate()  # not `ray stop`, which would end other people's Ray too
        cluster.wait(30)
