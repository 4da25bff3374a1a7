"""The command line that an agent of W&B's builds, from the sweep that docs/dashboards.md shows."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from triptych.cli.arguments import as_hydra_wants, without_hyphens
from triptych.config.check import CONFIGS
from triptych.runs.directory import RunDirectory
from triptych.runs.provenance import provenance

CHOSEN = {"optimizer.lr": 0.1, "objective": "v", "seed": 2}


def sweep() -> dict:
    page = (CONFIGS.parent / "docs" / "dashboards.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    return yaml.safe_load(block)


def built(chosen: dict) -> list[str]:
    """As ``wandb agent`` does: W&B's own functions, its macros filled in."""
    given = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${args}": given["args"]}
    return [word for part in create_sweep_command(sweep()["command"]) for word in macros.get(part, [part])]


def test_the_documents_sweep_is_of_keys_that_there_are():
    assert set(sweep()["parameters"]) == set(CHOSEN)
    words = built(CHOSEN)
    assert words[-3:] == ["--optimizer.lr=0.1", "--objective=v", "--seed=2"]
    assert as_hydra_wants(words[-4:], "train") == ["data=digits", "optimizer.lr=0.1", "objective=v", "seed=2"]


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("--optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("--bound.steps=None", "bound.steps=null"),
        ("--optimizer.betas=[0.9, 0.95]", "optimizer.betas=[0.9, 0.95]"),
        ("--objective/loss=min_snr", "objective/loss=min_snr"),
        ("--test=False", "test=False"),
        ("--config-dir=here", "--config-dir=here"),
        ("--package=x", "--package=x"),
        ("--multirun", "--multirun"),
        ("seed=2", "seed=2"),
    ],
)
def test_an_override_with_hyphens_is_one_and_a_flag_of_hydras_stays_one(typed, understood):
    assert without_hyphens(typed) == understood


def test_a_run_of_an_agents_has_its_id_and_a_cell_of_ours_its_own(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert provenance(run, [], {})["id"] != "abc123"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert provenance(run, [], {})["id"] == "abc123"
    (tmp_path / "sweep.json").write_text("{}")
    assert provenance(run, [], {})["id"] != "abc123"


@pytest.mark.slow
def test_the_command_of_an_agent_runs(root, tiny):
    words = [*built({**CHOSEN, **dict(o.split("=") for o in tiny)}), "--name=agents"]
    environ = os.environ | {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "abc123", "WANDB_MODE": "offline"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, cwd=root, timeout=240)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(root / "logs" / "runs" / "agents")
    config = run.config()
    assert config["optimizer"]["lr"] == 0.1 and config["seed"] == 2
    assert run.summary()["choices"]["objective"] == "v"
    assert [path.name.endswith("-abc123") for path in (run / "wandb").glob("offline-run-*")] == [True]
