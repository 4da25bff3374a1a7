"""The commands as a person types them, each in a process of its own."""

import json
import re
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("module", ["triptych.cli.train", "triptych.cli.evaluate", "triptych.cli.sample"])
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"]])
def test_looking_around_is_quick(module, arguments, monkeypatch):
    """No heavy import: that is what takes seconds (test_arguments counts them)."""
    monkeypatch.setenv("COMP_LINE", "triptych-train objective=")
    monkeypatch.setenv("COMP_POINT", "25")
    code = LIGHT.format(arguments=arguments, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_completion_knows_the_objectives(monkeypatch):
    monkeypatch.setenv("COMP_LINE", "triptych-train objective=")
    code = "import sys; sys.argv[1:] = ['-sc', 'query=bash']\nfrom triptych.cli.train import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert {"objective=x0", "objective=levels"} <= set(done.stdout.split()), done


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """One real tiny run with W&B offline, made by the command, shared by the tests below."""
    from tests.conftest import TINY

    root = tmp_path_factory.mktemp("doors")
    environment = __import__("os").environ | {"TRIPTYCH_ROOT": str(root)}
    command = [sys.executable, "-m", "triptych.cli.train", "name=first", "objective=v", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "test bound" in done.stdout
    return root / "logs" / "runs" / "first", command, environment


def test_the_same_command_again_returns_the_recorded_result(run_directory):
    path, command, environment = run_directory
    stamp = (path / "summary.json").stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0 and "finished before" in done.stdout and "test bound" in done.stdout
    assert (path / "summary.json").stat().st_mtime_ns == stamp


def test_evaluate_reproduces_the_summary_exactly(run_directory, door, root):
    path, _, _ = run_directory
    checkpoint = path / "checkpoints" / "last.ckpt"
    done = door("triptych.cli.evaluate", f"ckpt={checkpoint}", f"out={root}/again.json")
    assert done.returncode == 0, done.stderr
    recorded = json.loads((path / "summary.json").read_text())["test"]
    assert json.loads((root / "again.json").read_text()) == recorded


def test_evaluate_in_discrete_time_gives_a_looser_bound(run_directory, inside, root):
    path, _, _ = run_directory
    done = inside(
        "triptych.cli.evaluate", f"ckpt={path}/checkpoints/last.ckpt", f"out={root}/t.json", "steps=4"
    )
    assert done.returncode == 0, done.stderr
    coarse = json.loads((root / "t.json").read_text())["bpd"]["mean"]
    assert coarse > json.loads((path / "summary.json").read_text())["test"]["bpd"]["mean"]


def test_sample_draws_from_the_checkpoint_alone(run_directory, door, inside, root):
    import torch

    path, _, _ = run_directory
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


def test_wandb_reads_back_what_the_run_logged(run_directory):
    """With W&B's own reader, offline."""
    path, _, _ = run_directory
    [log] = path.glob("wandb/offline-run-*/*.wandb")
    wandb = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    read = subprocess.run([*wandb, str(log)], capture_output=True, text=True, timeout=60, check=True)
    records = [json.loads(line) for line in read.stdout.splitlines() if line.strip()]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    bounds = {item["trainer/global_step"]: item["val/bpd"] for item in history if "val/bpd" in item}
    assert len(bounds) == 2, "one row a validation"
    assert any("train/loss" in item for item in history) and any(
        "train/grad_norm" in item for item in history
    )
    read = subprocess.run(
        [*wandb, "--summary", str(log)], capture_output=True, text=True, timeout=60, check=True
    )
    whole = json.loads(read.stdout)
    config = whole["config"]
    assert (
        config["objective"] == config["resolved"]["objective"]["output"]["space"] == "v"
        and config["seed"] == 1
    )
    recorded = json.loads((path / "summary.json").read_text())["test"]["bpd"]["mean"]
    assert json.loads(re.search(r'"test/bpd": ?([0-9.]+)', read.stdout)[1]) == pytest.approx(
        recorded, rel=1e-6
    )
    pictures = list(log.parent.rglob("files/media/images/**/*.png"))
    assert pictures and all(p.stat().st_size > 0 for p in pictures)
    provenance = json.loads((path / "provenance.json").read_text())
    assert provenance["id"] in log.name and provenance["git"] is not None and provenance["packages"]["torch"]


def test_a_sweep_goes_on_past_a_failure_and_skips_what_is_finished(door, root, tiny):
    """Four cells, each a process: two are refused, the others finish and are reported."""
    command = ["triptych.cli.train", "-m", "name=three", *tiny]
    grid = ["seed=1", "objective=v,epsilon", "schedule.gamma_max=6,-9"]
    done = door(*command, *grid)
    sweep = next((root / "logs" / "sweeps").iterdir())
    statuses = {p.parent.name: json.loads(p.read_text())["status"] for p in sweep.glob("*/summary.json")}
    assert sorted(statuses.values()) == ["failed", "failed", "finished", "finished"], done.stderr
    assert all(("-9" in name) == (status == "failed") for name, status in statuses.items())
    assert done.returncode == 1
    assert (sweep / "report.html").is_file() and (sweep / "results.csv").is_file()
    ids = {json.loads(p.read_text())["id"] for p in sweep.glob("*/provenance.json")}
    logs = {p.name.rsplit("-", 1)[1] for p in sweep.glob("*/wandb/offline-run-*")}
    assert len(ids) == 2 and logs == ids, "each run is one W&B run with an id of its own"
    stamps = {p: p.stat().st_mtime_ns for p in sweep.glob("*gamma_max=6*/summary.json")}
    # the same command with another value runs its cells alone
    again = door(*command, "seed=1", "objective=v,epsilon", "schedule.gamma_max=6,7")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert len(list(sweep.glob("*/summary.json"))) == 6
