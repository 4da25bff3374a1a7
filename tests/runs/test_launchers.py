"""Launchers: what each is asked for, and the same sweep through each."""

import json
import subprocess

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from tests.runs.commands import command, environment
from triptych.config.check import CONFIGS
from triptych.config.names import cores, register_resolvers


def launcher(*overrides: str):
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg, cfg.hydra.launcher


def test_local_is_a_run_a_core(root):
    _, local = launcher("hydra/launcher=local")
    assert local.n_jobs == cores()
    line = [a for a in command("-m", "hydra/launcher=local", "name=s", "seed=1") if a != "threads=1"]
    subprocess.run(line, check=True, capture_output=True, env=environment(root))
    [config] = root.rglob("config.yaml")
    assert "\nthreads: 1\n" in config.read_text()


def test_a_slurm_job_has_a_task_for_each_of_the_trainers_processes():
    _, slurm = launcher("hydra/launcher=slurm", "trainer=gpu", "trainer.devices=4", "trainer.num_nodes=2")
    assert (slurm.nodes, slurm.tasks_per_node, slurm.gpus_per_node) == (2, 4, 4)
    _, slurm = launcher("hydra/launcher=slurm", "trainer=cpu")
    assert (slurm.nodes, slurm.tasks_per_node, slurm.gpus_per_node) == (1, 1, None)


def test_a_slurm_sweep_over_the_number_of_processes_is_refused(root):
    line = command("-m", "hydra/launcher=slurm", "trainer.devices=1,2")
    done = subprocess.run(line, capture_output=True, text=True, env=environment(root))
    assert done.returncode == 1 and not list(root.rglob("config.yaml"))
    assert done.stderr.startswith("error: trainer.devices: cannot vary within a SLURM sweep")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_launcher_makes_the_same_sweep(root):
    """One after the other over one directory: the first computes, the others find everything finished."""
    names = {"": None, "local": None, "submitit_local": "hydra_plugins.hydra_submitit_launcher"}
    names["ray"] = "hydra_plugins.hydra_ray_launcher"
    figures, stamps = {}, {}
    for name, plugin in names.items():
        if plugin:
            try:
                __import__(plugin)
            except ImportError:
                print(f"{name}: not installed")
                continue
        place = root / (name or "basic")
        chosen = [f"hydra/launcher={name}"] if name else []
        line = command("-m", *chosen, "name=s", "seed=1,2")
        for again in (False, True):
            done = subprocess.run(line, capture_output=True, text=True, env=environment(place), timeout=280)
            assert done.returncode == 0, (name, done.stderr)
            found = {p.parent.name: p for p in place.rglob("summary.json")}
            if again:
                assert {k: p.stat().st_mtime_ns for k, p in found.items()} == stamps
            stamps = {k: p.stat().st_mtime_ns for k, p in found.items()}
        figures[name] = {k: json.loads(p.read_text())["test"] for k, p in found.items()}
        assert len(figures[name]) == 2 and figures[name] == figures[""], name
    assert len(figures) >= 2
