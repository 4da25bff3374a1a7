"""The commands as a person types them, each in its own process."""

import json
import subprocess
import sys

import pytest
import torch

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


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            "--help",
            [
                "# gamma, time, quadratic or karras; time: equal steps of the schedule's t\n",
                "# no likelihood beside the bound\n",
            ],
        ),
        ("-sc query=bash", ["objective=v"]),
    ],
)
def test_help_and_completion_import_no_heavy_modules(arguments, words, monkeypatch):
    """Heavy imports, which take seconds, are avoided (test_arguments counts them)."""
    monkeypatch.setenv("COMP_LINE", "triptych-train objective=")
    monkeypatch.setenv("COMP_POINT", "25")
    code = LIGHT.format(arguments=arguments.split(), module="triptych.cli.train")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr


def test_the_same_command_again_returns_the_recorded_result(root, door):
    """Like the console script, it imports no code of the current folder."""
    here, small = (
        traps(root / "here"),
        ["data.train_size=500", "data.val_size=50", "data.test_size=50"],
    )
    typed = ["triptych.cli.train", "name=first", "data=ring", "denoiser=mlp", *small, *TINY]
    typed += ["logger=csv"]
    line = [sys.executable, "-P", "-m", *typed]
    first = subprocess.run(line, capture_output=True, text=True, cwd=here, timeout=240)
    assert not (here / "imported").exists() and first.returncode == 0, first.stderr
    summary = root / "logs" / "runs" / "first" / "summary.json"
    stamp, again = summary.stat().st_mtime_ns, door(*typed)
    assert "test bound" in first.stdout and "test bound" in again.stdout
    assert again.returncode == 0 and "finished before" in again.stdout, again.stderr
    assert summary.stat().st_mtime_ns == stamp


def test_sample_command_needs_only_ckpt(finished, door, root):
    few, out = ("n=5", "sampler=ddim", "sampler.steps=3"), root / "drawn"
    last = finished().path / "checkpoints" / "last.ckpt"
    done = door("triptych.cli.sample", f"ckpt={last}", *few, f"out={out}")
    assert done.returncode == 0 and f"{out}/samples.pt" in done.stdout, done.stderr
    assert torch.load(out / "samples.pt", weights_only=True)["x"].shape == (5, 1, 8, 8)
    assert (out / "samples.png").is_file()


def test_sweep_continues_after_failed_run_and_skips_finished_runs(door, root, tiny):
    command = ["triptych.cli.train", "-m", "name=two", *tiny, "samples.n=0", "seed=1", "logger=csv"]
    done = door(*command, "schedule.gamma_max=-9,6")
    sweep = next((root / "logs" / "sweeps").iterdir())
    statuses = {
        p.parent.name: json.loads(p.read_text())["status"] for p in sweep.glob("*/summary.json")
    }
    assert sorted(statuses.values()) == ["failed", "finished"], done.stderr
    assert all(("-9" in name) == (status == "failed") for name, status in statuses.items())
    assert done.returncode == 1
    assert (sweep / "report.html").is_file() and (sweep / "results.csv").is_file()
    [finished] = sweep.glob("*gamma_max=6*/summary.json")
    stamp = finished.stat().st_mtime_ns
    # The same command with another value runs only that value's cell.
    again = door(*command, "schedule.gamma_max=6,7")
    assert again.returncode == 0, again.stderr
    assert finished.stat().st_mtime_ns == stamp and len(list(sweep.glob("*/summary.json"))) == 3
