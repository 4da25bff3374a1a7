"""A real SLURM: sweeps through sbatch, preemption, requeueing, and undisturbed figures."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.run.commands import command, end, environment, wait_for
from tests.study.slurm.cluster import Cluster, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=f"no SLURM: {missing()}"),
]
LONG = ["trainer.max_steps=1500", "trainer.val_check_interval=100", "denoiser.network.dropout=0.2"]


PRESET = ["hydra/launcher=slurm", "hydra.launcher.partition=debug", "hydra.launcher.timeout_min=60"]
PRESET += ["hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def summaries(folder: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in folder.rglob("summary.json")}


def executions(folder: Path) -> int:
    """Count the starts of the runs in ``folder``."""
    return sum(
        len(json.loads(p.read_text())["executions"]) for p in folder.rglob("provenance.json")
    )


def begin(line: list[str], cluster: Cluster, root: Path) -> subprocess.Popen:
    """Start a command that can reach the cluster, with both outputs in one."""
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(line, env=cluster.environment | environment(root), text=True, **out)


def jobs(cluster) -> dict[str, str]:
    """Return {job id: state} of the queue."""
    lines = cluster.run("squeue", "-h", "-r", "-o", "%i %T").splitlines()
    return dict(line.split() for line in lines)


def step(folder: Path) -> int:
    try:
        return json.loads((folder / "progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


@pytest.mark.parametrize("how", ["requeue", "USR2"])
def test_slurm_sweep_survives_preemption(cluster, root, how):
    """One of four jobs is preempted in training, restarts, and ends like its undisturbed twin."""
    grid = ["name=s", "seed=1,2,3,4", *LONG]
    undisturbed = root / "undisturbed"
    end(command("-m", "hydra/launcher=local", *grid), undisturbed)
    sweep = begin(command("-m", *PRESET, *grid), cluster, root)
    wait_for(
        lambda: any(step(p.parent) > 200 for p in root.glob("logs/sweeps/*/*/progress.json")), sweep
    )
    job = min(i for i, state in jobs(cluster).items() if state == "RUNNING")
    if how == "requeue":
        cluster.run("scontrol", "requeue", job)
    else:
        cluster.run("scancel", "--ctld", "--signal=USR2", job)  # else it retries for ever
    said, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, said
    one, other = summaries(undisturbed), summaries(root / "logs")
    assert len(other) == 4
    for name, summary in other.items():
        for split in ("train", "val", "test"):
            assert summary[split] == one[name][split], (name, split)
    logs = "".join(p.read_text() for p in root.rglob("train.log"))
    assert 0 < logs.count("interrupted") == executions(root / "logs") - 4, logs


def test_cancelled_slurm_job_is_not_waited_for(cluster, root):
    """Without accounting, two of three jobs are cancelled, one running, one queued; one counts."""
    line = command("-m", *PRESET, "name=s", "seed=1,2,3", *LONG)
    sweep = begin(line, cluster, root)
    first_run = root / "logs" / "sweeps" / "s" / "seed=1"
    try:
        wait_for(lambda: step(first_run) > 100, sweep, 200.0)
        first, _, third = sorted(jobs(cluster))
        assert jobs(cluster)[first] == "RUNNING" and jobs(cluster)[third] == "PENDING"
        cluster.run("scancel", "--ctld", third)
        cluster.run("scancel", "--ctld", first)
        said, _ = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == 1, said
    [(name, summary)] = summaries(root / "logs").items()
    assert name == "seed=2" and summary["status"] == "finished"
    told = [row for row in said.splitlines() if "repeat the same command" in row]
    what = "ended without a result (cancelled); repeat the same command to resume it"
    assert sorted(told) == [
        f"seed=1: its SLURM job {first} {what}",
        f"seed=3: its SLURM job {third} {what}",
    ]
    assert "Traceback" not in said and "sacct" not in said, said
    again = subprocess.run(
        line, env=cluster.environment | environment(root), capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert [s["status"] for s in summaries(root / "logs").values()] == ["finished"] * 3
    assert executions(root / "logs") == 4


def test_run_requeues_its_slurm_batch_script(cluster, root):
    """srun has two tasks, and SLURM sends its signal before the time limit.

    The restarted run has the same directory and W&B id.
    """
    line = " ".join(command("name=mine", "trainer=ddp_sim", *LONG)).replace(
        "logger=csv", "logger=wandb"
    )
    script = root / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --job-name=t --ntasks-per-node=2 --nodes=1 --requeue "
        "--open-mode=append\n"
        f"#SBATCH --output={root}/job.log --export=ALL\nsrun {line}\n"
    )
    end(command("name=twin", "trainer=ddp_sim", *LONG), root)
    line = ["sbatch", "--parsable", str(script)]
    env = cluster.environment | environment(root)
    job = subprocess.run(line, env=env, capture_output=True, text=True).stdout.strip()
    folder = root / "logs" / "runs" / "mine"
    wait_for(lambda: step(folder) > 200, None)
    identity = json.loads((folder / "provenance.json").read_text())["id"]
    cluster.run("scancel", "--signal=USR1", job)
    wait_for(lambda: (folder / "summary.json").exists(), None)
    log = (root / "job.log").read_text()
    assert log.count("interrupted at step") == 1 and "SIGUSR1" in log, log
    ours, twins = (
        json.loads((folder.parent / n / "summary.json").read_text()) for n in ("mine", "twin")
    )
    assert ours["test"] == twins["test"] and ours["world_size"] == 2
    assert sorted(p.name for p in folder.parent.iterdir()) == ["mine", "twin"]
    starts = [p.name.endswith(identity) for p in (folder / "wandb").glob("offline-run-*")]
    assert starts == [True, True]
