"""The commands as a person types them, each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests import forked
from tests.conftest import TINY
from tests.run.hooks import traps

LIGHT = """
import sys
sys.argv = ['triptych'] + {arguments!r}
from {module} import main
try:
    main()
except SystemExit:
    pass
heavy = [m for m in ('torch', 'pytorch_lightning', 'wandb', 'numpy', 'matplotlib') if m in sys.modules]
assert not heavy, heavy
"""
COMPLETION = ["-sc", "query=bash"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--help"], "Choices, as in"),
        ("train", COMPLETION, "objective=levels"),
    ],
)
def test_looking_around_is_quick(name, arguments, words, monkeypatch):
    """No heavy import: that is what takes seconds (test_arguments counts them)."""
    monkeypatch.setenv("COMP_LINE", "triptych-train objective=")
    monkeypatch.setenv("COMP_POINT", "25")
    code = LIGHT.format(arguments=arguments, module=f"triptych.cli.{name}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and words in done.stdout, done.stderr


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """One tiny run with W&B offline, made by the command, shared by the tests below."""
    root = tmp_path_factory.mktemp("doors")
    line = [sys.executable, "-m", "triptych.cli.train", "name=first", "objective=v", *TINY]
    done = forked.run(line, os.environ | {"TRIPTYCH_ROOT": str(root)}, check=True)
    assert "test bound" in done.stdout
    return root / "logs" / "runs" / "first"


def test_the_same_command_again_returns_the_recorded_result(root, door):
    """As the console script does, it imports no code of the folder in which it is typed."""
    here, small = traps(root / "here"), ["data.train_size=500", "data.val_size=50", "data.test_size=50"]
    typed = ["triptych.cli.train", "name=first", "data=ring", "denoiser=mlp", *small, *TINY]
    line = [sys.executable, "-P", "-m", *typed]
    first = subprocess.run(line, capture_output=True, text=True, cwd=here, timeout=240)
    assert not (here / "imported").exists() and first.returncode == 0, first.stderr
    summary = root / "logs" / "runs" / "first" / "summary.json"
    stamp, again = summary.stat().st_mtime_ns, door(*typed)
    assert "test bound" in first.stdout and "test bound" in again.stdout
    assert again.returncode == 0 and "finished before" in again.stdout, again.stderr
    assert summary.stat().st_mtime_ns == stamp


def test_evaluate_reproduces_the_summary_exactly(run_directory, door, root):
    checkpoint = run_directory / "checkpoints" / "last.ckpt"
    done = door("triptych.cli.evaluate", f"ckpt={checkpoint}", f"out={root}/again.json")
    assert done.returncode == 0, done.stderr
    recorded = json.loads((run_directory / "summary.json").read_text())["test"]
    assert json.loads((root / "again.json").read_text()) == recorded


def test_evaluate_in_discrete_time_gives_a_looser_bound(run_directory, inside, root):
    path = run_directory
    done = inside(
        "triptych.cli.evaluate", f"ckpt={path}/checkpoints/last.ckpt", f"out={root}/t.json", "steps=4"
    )
    assert done.returncode == 0, done.stderr
    coarse = json.loads((root / "t.json").read_text())["bpd"]["mean"]
    assert coarse > json.loads((path / "summary.json").read_text())["test"]["bpd"]["mean"]


def test_sample_draws_from_the_checkpoint_alone(run_directory, door, inside, root):
    import torch

    path = run_directory
    arguments = [
        f"ckpt={path}/checkpoints/last.ckpt",
        "n=5",
        "sampler=ddim",
        "sampler.steps=3",
        f"out={root}/drawn",
    ]
    done = door("triptych.cli.sample", *arguments)
    assert done.returncode == 0, done.stderr
    x = torch.load(root / "drawn" / "samples.pt", weights_only=True)["x"]
    assert x.shape == (5, 1, 8, 8) and (root / "drawn" / "samples.png").is_file()
    done = inside("triptych.cli.sample", *arguments, "batch_size=2")
    assert done.returncode == 0
    again = torch.load(root / "drawn-2" / "samples.pt", weights_only=True)["x"]
    assert again.shape == x.shape and f"{root}/drawn-2/samples.pt" in done.stdout


def test_a_sweep_goes_on_past_a_failure_and_skips_what_is_finished(door, root, tiny):
    """Two cells, each a process: one is refused, the other finishes and is reported."""
    command = ["triptych.cli.train", "-m", "name=two", *tiny, "samples.n=0", "seed=1", "logger=csv"]
    done = door(*command, "schedule.gamma_max=-9,6")
    sweep = next((root / "logs" / "sweeps").iterdir())
    statuses = {p.parent.name: json.loads(p.read_text())["status"] for p in sweep.glob("*/summary.json")}
    assert sorted(statuses.values()) == ["failed", "finished"], done.stderr
    assert all(("-9" in name) == (status == "failed") for name, status in statuses.items())
    assert done.returncode == 1
    assert (sweep / "report.html").is_file() and (sweep / "results.csv").is_file()
    [finished] = sweep.glob("*gamma_max=6*/summary.json")
    stamp = finished.stat().st_mtime_ns
    # the same command with another value runs its cell alone
    again = door(*command, "schedule.gamma_max=6,7")
    assert again.returncode == 0, again.stderr
    assert finished.stat().st_mtime_ns == stamp and len(list(sweep.glob("*/summary.json"))) == 3
