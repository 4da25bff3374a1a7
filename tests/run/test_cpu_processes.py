"""More processes on a CPU than it has cores: said, and refused from five a core on."""

import pytest
from hydra import initialize_config_dir

from tests.refusal import refused
from triptych.config.compose import compose_command
from triptych.config.source import CONFIGS
from triptych.run import processes
from triptych.run.processes import DISTRIBUTED, check_cpu_processes
from triptych.study.prerequisites import check_cells, first_warning

SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "9"}
SAID = "trainer.devices=8: 8 processes on 2 CPU cores; more than 2 are no faster"
MANY = "trainer.devices=9: 9 processes on 2 CPU cores; use at most 8"


def check(devices, accelerator="auto", **more):
    return check_cpu_processes({"devices": devices, "accelerator": accelerator}, **more)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(processes, "has_gpu", lambda: False)
    for name in (*DISTRIBUTED, *SRUN, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)


def test_more_processes_than_cores_are_said_and_more_than_four_a_core_refused():
    assert check(2) == ""
    assert check(8) == check("8", "cpu") == SAID
    refused(lambda: check(9), MANY)
    refused(lambda: check(9, key="devices"), MANY.removeprefix("trainer."))


@pytest.mark.parametrize("devices", ["auto", -1, [0, 1], "0,1"])
def test_devices_that_are_no_number_are_left_to_lightning(devices):
    assert check(devices) == ""


def test_processes_on_gpus_are_not_counted(monkeypatch):
    assert check(9, "gpu") == ""
    monkeypatch.setattr(processes, "has_gpu", lambda: True)
    assert check(9) == ""
    refused(lambda: check(9, "cpu"), MANY)


def test_launchers_of_processes_say_how_many_share_the_cores(monkeypatch):
    """Torchrun's share this machine's; srun gives each its own."""
    with monkeypatch.context() as patch:
        for name, value in SRUN.items():
            patch.setenv(name, value)
        assert check(9, "cpu") == ""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    refused(lambda: check(2, "cpu"), "9 processes on 2 CPU cores")


def warning(config, jobs) -> str:
    return first_warning(config, check_cells(config, jobs, True))


def test_sweep_counts_the_processes_of_each_of_its_runs():
    config = compose_command("train", ["trainer=ddp_sim"])
    slurm = compose_command("train", ["trainer=ddp_sim", "hydra/launcher=slurm"])
    eight, nine = ["trainer.devices=8"], ["trainer.devices=9"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert warning(config, [["trainer.devices=2"], eight]) == SAID
        refused(lambda: check_cells(config, [eight, nine], True), MANY)
        assert warning(slurm, [nine]) == ""
