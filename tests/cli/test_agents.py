"""The command line that W&B's agent builds from the sweep in examples/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.run.wandb_server import KEY, Server
from triptych.cli.arguments import read_command_line, without_hyphens
from triptych.config.check import CONFIGS
from triptych.run.directory import RunDirectory
from triptych.run.provenance import new_provenance

SWEEP = CONFIGS.parent / "examples" / "wandb_sweep.yaml"
CHOSEN = {"optimizer.lr": 0.1, "objective": "v", "seed": 2}


def sweep() -> dict:
    return yaml.safe_load(SWEEP.read_text())


def built(chosen: dict) -> list[str]:
    """Build the command as ``wandb agent`` does, with W&B's own functions and macros."""
    # Imported here, because it takes seconds, even in a worker with other tests.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    given = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in chosen.items()}}
    )
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${args}": given["args"],
    }
    return [
        word
        for part in create_sweep_command(sweep()["command"])
        for word in macros.get(part, [part])
    ]


def test_wandb_sweep_example_uses_existing_keys():
    assert set(sweep()["parameters"]) == set(CHOSEN)
    words = built(CHOSEN)
    assert words[-3:] == ["--optimizer.lr=0.1", "--objective=v", "--seed=2"]
    typed = read_command_line(words[-4:], "train").overrides
    assert typed == ["data=digits", "optimizer.lr=0.1", "objective=v", "seed=2"]


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("--optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("--bound.steps=None", "bound.steps=null"),
        ("--optimizer.betas=[0.9, 0.95]", "optimizer.betas=[0.9, 0.95]"),
        ("--objective/loss=min_snr", "objective/loss=min_snr"),
        ("--test=False", "test=False"),
        ("--config-dir=here", "--config-dir=here"),
        ("--multirun", "--multirun"),
        ("seed=2", "seed=2"),
    ],
)
def test_hyphens_of_overrides_are_removed_and_hydra_flags_kept(typed, understood):
    assert without_hyphens(typed) == understood


def test_wandb_run_id_is_used_only_under_wandb_agent(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert new_provenance(run, [], {}, {})["id"] != "abc123"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert new_provenance(run, [], {}, {})["id"] == "abc123"
    (tmp_path / "sweep.json").write_text("{}")
    assert new_provenance(run, [], {}, {})["id"] != "abc123"


@pytest.mark.slow
def test_wandb_agent_runs_example_sweep(root, tiny):
    """``wandb sweep`` and ``wandb agent`` run for real, with a stand-in for the server."""
    with Server() as server:
        chosen = {**CHOSEN, **dict(o.split("=") for o in tiny), "name": "agents"}
        arguments = {name: {"value": value} for name, value in chosen.items()}
        server.commands = [
            {"type": "run", "run_id": "abc123", "program": "triptych-train", "args": arguments}
        ]
        there = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        for words in (["sweep", str(SWEEP)], ["agent", "--count", "1", "us/triptych/s1"]):
            line = [sys.executable, "-m", "wandb", *words]
            environ = os.environ | there | {"PATH": path}
            done = subprocess.run(
                line, env=environ, capture_output=True, text=True, cwd=root, timeout=400
            )
            assert done.returncode == 0, done.stderr
        assert yaml.safe_load(server.sweep)["parameters"].keys() == sweep()["parameters"].keys()
        config, bound = server.configs["abc123"], server.summaries["abc123"]["val/bound"]
        assert server.runs["abc123"]["sweep"] == "s1"
    assert config["optimizer/lr"]["value"] == 0.1 and config["objective"]["value"] == "v"
    run = RunDirectory(root / "logs" / "runs" / "agents")
    assert run.summary()["choices"]["objective"] == "v" and bound["min"] > 0
    assert [path.name.endswith("-abc123") for path in (run / "wandb").glob("run-*")] == [True]
