"""What has to be there before anything begins: files that a configuration names, and its launcher."""

import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.config.compose import to_plain
from triptych.config.folders import CONFIGS
from triptych.config.names import grid_keys
from triptych.errors import UserError
from triptych.run.untrusted import check_reference

CHECKPOINTS = ("guide", "objective.teacher", "measures.classifier", "model.stages", "condition_from")
# files of other kinds
OTHERS = ("measures.inception", "measures.statistics", "measures.contrastive", "data.embeddings")


def check_files(config: DictConfig, but: Collection[str] = ()) -> None:
    """Check each file, run and data set that is named.

    Args:
        but: keys and groups that differ between the cells of a sweep, whose files these are then not.

    Raises:
        UserError: it is missing, or cut, or of a run that has not finished.
    """
    target = str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
    elsewhere = any(name in target for name in ("slurm", "ray"))  # whose machines may have data of their own
    ready = not elsewhere and not any(key.partition(".")[0] == "data" for key in but)
    if ready and isinstance(data := OmegaConf.select(config, "data"), DictConfig):
        from triptych.data.source import check_data_files  # numpy, which help does without

        check_data_files(to_plain(data))
    for key, value in _named(config):
        if key.startswith("measures.") and not OmegaConf.select(config, "measures.n"):
            continue
        group = next(one for one in (*CHECKPOINTS, *OTHERS) if key.startswith(one))
        if not {group, group.rpartition(".")[0]}.isdisjoint(but):
            continue
        path = Path(value).expanduser()
        if not path.exists():
            raise UserError(
                f"{key}={value}: no such file{_suggestion(path)}; must be null or an existing file"
            )
        if group in CHECKPOINTS:
            check_reference(key, str(path))


def _named(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, path) of each path in the configuration, with each entry of lists and mappings."""
    for key in (*CHECKPOINTS, *OTHERS):
        value: Any = OmegaConf.select(config, key)
        if isinstance(value, str) and value != "exact":
            yield key, value
        elif OmegaConf.is_list(value):
            yield from ((f"{key}[{i}]", str(one)) for i, one in enumerate(value))
        elif OmegaConf.is_dict(value):  # of condition_from; without a slash it is another part
            yield from ((f"{key}.{name}", one) for name, one in value.items() if "/" in str(one))


def _suggestion(path: Path) -> str:
    """Return ", triptych-train experiment=NAME makes it" if an experiment makes that run, else ""."""
    names = [b for a, b in zip(path.parts, path.parts[1:], strict=False) if a == "runs"]
    names_of = [name for name in names if (CONFIGS / "experiment" / f"{name}.yaml").is_file()]
    return f", triptych-train experiment={names_of[0]} makes it" if names_of else ""


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for what SLURM or Ray would refuse, or wait for, much later."""
    _check_allocation(config)
    _check_ray(config)
    if on_slurm(config) and not shutil.which("srun"):  # which submitit asks for once the sweep has begun
        raise UserError("hydra/launcher: no SLURM here (srun not found); start the sweep on a login node")


def on_slurm(config: DictConfig) -> bool:
    """Return whether its jobs are SLURM's."""
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")


def _check_allocation(config: DictConfig) -> None:
    """Check a SLURM job's tasks, asked for once for a whole sweep: they must be the trainer's processes."""
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
    # Ray has no option for it
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
