"""Launchers: their arguments, and the same sweep with each of them."""

import io
import json
import math
import sys
from pathlib import Path

import joblib
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tests.run.commands import command, end
from triptych.config import identity
from triptych.config.compose import compose_command
from triptych.config.identity import cores
from triptych.errors import UserError
from triptych.run.request import resolve
from triptych.study import concurrency
from triptych.study.concurrency import Card, find_card, fitting_runs
from triptych.study.plan import answer, count_network_cost, run_memory
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
SWEEP = ["-m", "hydra/launcher=local", "cores=6", "name=s", "seed=1,2"]


def card(needed):
    return Card("NVIDIA H100 80GB HBM3", 79 * GIB, needed)


@pytest.mark.parametrize(
    "memory, most, runs",
    [(10 * GIB, 16, 7), (10 * GIB, 4, 4), (100 * GIB, 4, 1), (float("inf"), 4, 1)],
)
def test_as_many_runs_at_a_time_as_a_gpu_holds_and_at_most_the_cores(memory, most, runs):
    assert fitting_runs(card(memory), most) == runs


@pytest.mark.parametrize(
    "card, typed, runs, line",
    [
        (None, [], 6, "no CUDA GPU here: 6 runs at a time, a core each"),
        (card(20 * GIB), [], 3, "on one NVIDIA H100 80GB HBM3: 3 runs at a time"),
        (card(GIB), [], 6, "on one NVIDIA H100 80GB HBM3: 6 runs at a time"),
        (card(20 * GIB), ["trainer=cpu"], 6, "on the CPU: 6 runs at a time, a core each"),
        (card(20 * GIB), ["hydra.launcher.n_jobs=5"], 5, ""),
        (
            card(float("inf")),
            [],
            1,
            "on one NVIDIA H100 80GB HBM3: 1 run at a time, as the memory of a run is not known; "
            "pass hydra.launcher.n_jobs=N for more",
        ),
    ],
)
def test_sweep_starts_as_many_runs_as_its_first_line_says(
    inside, monkeypatch, card, typed, runs, line
):
    launched = []
    monkeypatch.setattr(concurrency, "find_card", lambda configs: card)
    monkeypatch.setattr(
        joblib.Parallel, "__call__", lambda self, jobs: launched.append(self.n_jobs) or []
    )
    done = inside("triptych.cli.train", *SWEEP, *typed)
    GlobalHydra.instance().clear()
    assert launched == [runs]
    said = [text for text in done.stderr.splitlines() if " at a time" in text]
    assert said == [line] * bool(line)


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """Return a function that gives this machine the files of some devices."""

    def give(*names):
        for name in names:
            (tmp_path / name).touch()
        monkeypatch.setattr(identity, "DEVICE_FILES", tmp_path)

    return give


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "kfd", "dxg"])
def test_torch_is_asked_for_the_gpu_only_if_it_has_a_device_file(devices, monkeypatch, name):
    asked = [
        "sh",
        "-c",
        """cat >/dev/null; echo noise; echo '{"name": "A", "free": 8, "needed": 2}'""",
    ]
    monkeypatch.setattr(concurrency, "COUNT_MEMORY", asked)
    devices("nvme0", "null", "nvram")
    assert find_card([{}]) is None
    devices(name)
    assert find_card([{}]) == Card("A", 8, 2)


@pytest.mark.parametrize(
    "program, card", [("exit 3", Card("GPU", 0, math.inf)), ("echo null", None)]
)
def test_gpu_that_cannot_be_asked_runs_one_at_a_time(devices, monkeypatch, program, card):
    devices("nvidia0")
    monkeypatch.setattr(concurrency, "COUNT_MEMORY", ["sh", "-c", program])
    assert find_card([]) == card


def test_torch_names_the_gpu_its_free_memory_and_what_runs_need(monkeypatch, capsys):
    """Counted by hand: weights, gradients, two moments and an average; activations; a context."""
    config = resolve(compose_command("train", ["callbacks.ema.others=[]"]), Path()).config
    cost = count_network_cost(config)
    tensors = 5 * 4 * cost.parameters + config["data"]["batch_size"] * cost.activations
    needed = pytest.approx(2**30 + 1.25 * tensors)
    assert run_memory(config, cost) == needed
    plan = {"is_available": True, "get_device_name": "A", "mem_get_info": (7, 9)}
    for name, value in plan.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for configs, most in (
        ([config, config], needed),
        ([config, {**config, "denoiser": None}], math.inf),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(configs)))
        answer()
        assert json.loads(capsys.readouterr().out) == {"name": "A", "free": 7, "needed": most}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_process_that_counts_memory_may_lack_a_gpu(devices):
    devices("nvidia0")
    assert find_card([{"model": {"_target_": "own.Model"}}]) is None


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
