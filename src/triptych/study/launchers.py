"""What a launcher needs of a sweep, refused before there is a directory."""

import shutil
import socket

from omegaconf import DictConfig

from triptych.config.names import grid_keys
from triptych.errors import UserError


def check_launcher(config: DictConfig) -> None:
    """UserError for what SLURM or Ray would refuse, or wait for, much later."""
    _check_allocation(config)
    _check_ray(config)
    if on_slurm(config) and not shutil.which("srun"):  # which submitit asks for once the sweep has begun
        raise UserError("hydra/launcher: no SLURM here (srun not found); start the sweep on a login node")


def on_slurm(config: DictConfig) -> bool:
    """Whether its jobs are SLURM's."""
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")


def _check_allocation(config: DictConfig) -> None:
    """A SLURM job's tasks are asked for once for the whole sweep, and must be the trainer's processes."""
    fixed = {"trainer", "trainer.devices", "trainer.num_nodes"}
    swept = {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)} & fixed
    if swept and on_slurm(config):
        raise UserError(f"{min(swept)}: cannot vary within a SLURM sweep; start a sweep for each value")


def _check_ray(config: DictConfig) -> None:
    """Refuse a cluster's address that does not answer: Ray itself would try for minutes."""
    launcher = config.hydra.launcher
    if not str(launcher._target_).endswith("RayLauncher"):
        return
    from ray.job_config import JobConfig

    # else its workers would look for each module in the folder where the command was typed first
    JobConfig._runtime_env_has_working_dir = lambda _: True  # type: ignore[method-assign]
    address = launcher.ray.init.get("address")
    host, colon, port = str(address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # auto, local, none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        raise UserError(
            f"hydra.launcher.ray.init.address={address}: no answer from there ({error.strerror or error}); "
            "use the address of a cluster that is up, auto or local"
        ) from error
