"""Launchers: their arguments, and the same sweep with each of them."""

import json
import sys

import joblib
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tests.run.commands import command, end
from triptych.config.compose import compose_command
from triptych.config.identity import cores
from triptych.errors import UserError
from triptych.study.prerequisites import check_launcher


def launcher(*overrides: str):
    cfg = compose_command("train", overrides)
    HydraConfig.instance().set_config(cfg)
    return cfg, cfg.hydra.launcher


def test_local_launcher_runs_one_job_per_core_with_one_thread(inside, monkeypatch):
    assert launcher("hydra/launcher=local")[1].n_jobs == cores()
    launched = []
    monkeypatch.setattr(joblib.Parallel, "__call__", lambda _, jobs: launched.append(jobs) or [])
    inside("triptych.cli.train", "-m", "hydra/launcher=local", "cores=6", "name=s", "seed=1")
    GlobalHydra.instance().clear()
    assert (
        launched and launcher("cores=6")[0].threads == 1
    )  # by what the launcher's jobs are handed


def test_slurm_launcher_requests_task_per_trainer_process():
    many = ["trainer.accelerator=gpu", "trainer.devices=4", "trainer.num_nodes=2"]
    for typed, asked in ((many, (2, 4, 4)), (["trainer=cpu"], (1, 1, None))):
        _, slurm = launcher("hydra/launcher=slurm", *typed)
        assert (slurm.nodes, slurm.tasks_per_node, slurm.gpus_per_node) == asked


def test_ray_launcher_requests_gpus_and_sets_threads():
    _, launcher_ = launcher(
        "hydra/launcher=ray_tasks", "trainer.accelerator=gpu", "trainer.devices=2"
    )
    assert (launcher_.ray.remote.num_cpus, launcher_.ray.remote.num_gpus) == (1, 2)
    _, launcher_ = launcher(
        "hydra/launcher=ray_tasks", "hydra.launcher.ray.remote.num_cpus=4", "trainer=cpu"
    )
    assert launcher_.ray.remote.num_gpus is None
    assert int(launcher_.ray.remote.runtime_env.env_vars.TRIPTYCH_THREADS) == 4


WITHOUT = """
import sys
from triptych.cli.train import main

hidden = "hydra_plugins.hydra_ray_launcher", "hydra_plugins.hydra_submitit_launcher", "optuna"
sys.modules.update(dict.fromkeys(hidden))  # as if they were not there
for chosen in sys.argv[1:]:
    sys.argv = ["triptych-train", "-m", chosen, "seed=1"]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 1
"""


def test_missing_launcher_package_names_pip_extra(root):
    needs = {
        "hydra/launcher=ray_tasks": ("hydra/launcher/ray", "ray"),
        "hydra/launcher=slurm": ("hydra/launcher/submitit_slurm", "slurm"),
        "hydra/launcher=submitit_local": ("hydra/launcher/submitit_local", "slurm"),
        "hparams_search=optuna": ("hparams_search", "search"),
    }
    done = end([sys.executable, "-c", WITHOUT, *needs], root)
    assert not list(root.rglob("config.yaml"))
    assert done.stderr.splitlines() == [
        f"error: {what}: not installed; pip install 'triptych[{extra}]'"
        for what, extra in needs.values()
    ]


def test_jobs_of_a_slurm_sweep_have_the_same_devices():
    typed = ["trainer.devices=1,2"]
    node = {
        "launcher": {"_target_": "x.SlurmLauncher"},
        "sweeper": {},
        "overrides": {"task": typed},
    }
    with pytest.raises(UserError, match="^trainer.devices: cannot vary within a SLURM sweep"):
        check_launcher(OmegaConf.create({"hydra": node}))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_launcher_makes_the_same_sweep(root):
    """All launchers give equal figures, and a repeated sweep finds everything finished."""
    figures, stamps = {}, {}
    for name in ("", "local", "submitit_local", "ray_tasks"):
        place = root / (name or "basic")
        chosen = [f"hydra/launcher={name}"] if name else []
        line = command("-m", *chosen, "name=s", "seed=1,2")
        for again in (False, True):
            end(line, place)
            found = {p.parent.name: p for p in place.rglob("summary.json")}
            if again:
                assert {k: p.stat().st_mtime_ns for k, p in found.items()} == stamps
            stamps = {k: p.stat().st_mtime_ns for k, p in found.items()}
        figures[name] = {k: json.loads(p.read_text())["test"] for k, p in found.items()}
        assert len(figures[name]) == 2 and figures[name] == figures[""], name
