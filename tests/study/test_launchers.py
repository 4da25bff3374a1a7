"""Launchers: their arguments, and the same sweep with each of them."""

import json
import sys
from pathlib import Path

import joblib
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tests.run.commands import command, end
from triptych.config.compose import compose_command
from triptych.config.identity import cores
from triptych.errors import UserError
from triptych.run.request import resolve
from triptych.study import concurrency
from triptych.study.concurrency import Card, count_memory, find_card, fitting_runs
from triptych.study.plan import CONTEXT, count_network_cost, run_memory
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


GIB = 2**30
H100 = Card("NVIDIA H100 80GB HBM3", 79 * GIB)
SWEEP = ["-m", "hydra/launcher=local", "cores=6", "name=s", "seed=1,2"]


@pytest.fixture
def planted(monkeypatch):
    """Return a function that plants a GPU and the memory of a run, and lists what joblib starts."""

    def plant(card, memory):
        launched = []
        monkeypatch.setattr(concurrency, "find_card", lambda: card)
        monkeypatch.setattr(concurrency, "count_memory", lambda configs: memory)
        monkeypatch.setattr(
            joblib.Parallel, "__call__", lambda self, jobs: launched.append(self.n_jobs) or []
        )
        return launched

    return plant


@pytest.mark.parametrize(
    "memory, most, runs",
    [(10 * GIB, 16, 7), (10 * GIB, 4, 4), (100 * GIB, 4, 1), (float("inf"), 4, 1)],
)
def test_as_many_runs_at_a_time_as_a_gpu_holds_and_at_most_the_cores(memory, most, runs):
    assert fitting_runs(H100, memory, most) == runs
    assert fitting_runs(Card("GB10", 0), memory, most) == 1, "its free memory is not known"


@pytest.mark.parametrize(
    "card, memory, typed, runs, line",
    [
        (None, None, [], 6, "no NVIDIA GPU here: 6 runs at a time, a core each"),
        (H100, 20 * GIB, [], 3, "on one NVIDIA H100 80GB HBM3: 3 runs at a time"),
        (H100, GIB, [], 6, "on one NVIDIA H100 80GB HBM3: 6 runs at a time"),
        (H100, 20 * GIB, ["trainer=cpu"], 6, "on the CPU: 6 runs at a time, a core each"),
        (H100, None, [], 6, "on the CPU: 6 runs at a time, a core each"),
        (H100, 20 * GIB, ["hydra.launcher.n_jobs=5"], 5, ""),
        (
            H100,
            float("inf"),
            [],
            1,
            "on one NVIDIA H100 80GB HBM3: 1 run at a time, as the memory of a run is not known; "
            "pass hydra.launcher.n_jobs=N for more",
        ),
    ],
)
def test_sweep_starts_as_many_runs_as_its_first_line_says(
    inside, planted, card, memory, typed, runs, line
):
    launched = planted(card, memory)
    done = inside("triptych.cli.train", *SWEEP, *typed)
    GlobalHydra.instance().clear()
    assert launched == [runs]
    said = [text for text in done.stderr.splitlines() if " at a time" in text]
    assert said == [line] * bool(line)


SMI = """#!/bin/sh
[ "$3" = "--id=0" ] || { echo "No devices were found"; exit 6; }
echo "NVIDIA H100 80GB HBM3, 80456"
"""


def test_card_is_looked_up_by_its_driver_unless_it_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_card() is None, "no driver"
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    assert find_card() == Card("NVIDIA H100 80GB HBM3", 80456 * 2**20)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert find_card() is None


@pytest.mark.parametrize(
    "memory", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "-5", "8 MiB", r"\377"]
)
def test_card_whose_driver_prints_no_number_has_unknown_memory(tmp_path, monkeypatch, memory):
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf 'NVIDIA GB10, {memory}\\n'\n")
    program.chmod(0o755)
    assert find_card() == Card("NVIDIA GB10", 0)


def test_run_needs_weights_averages_activations_and_the_context_of_its_process():
    config = resolve(compose_command("train", ["callbacks.ema.others=[]"]), Path()).config
    cost = count_network_cost(config)
    tensors = 5 * 4 * cost.parameters + config["data"]["batch_size"] * cost.activations
    assert run_memory(config) == pytest.approx(CONTEXT + 1.25 * tensors)
    assert run_memory(config | {"denoiser": None}) == float("inf")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_memory_is_counted_in_a_process_that_may_lack_a_gpu():
    assert count_memory([{"model": {"_target_": "own.Model"}}]) is None


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


@pytest.mark.parametrize("name", ["slurm", "ray_tasks"])
def test_jobs_of_a_cluster_need_to_know_whether_they_request_gpus(name):
    chosen = f"hydra/launcher={name}"
    for typed in ([], ["trainer=ddp", "trainer.devices=8"], ["trainer.accelerator=auto"]):
        with pytest.raises(UserError, match="^trainer.accelerator=auto: .* pass trainer.accel"):
            check_launcher(compose_command("train", [chosen, *typed]))
    for typed in ("trainer=cpu", "trainer=ddp_sim", "trainer.accelerator=gpu"):
        check_launcher(compose_command("train", [chosen, typed]))


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
