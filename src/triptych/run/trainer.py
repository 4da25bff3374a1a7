"""Build Lightning's Trainer, and count the steps of a fit."""

import math
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from triptych.config.build import build
from triptych.errors import UserError
from triptych.records import Config
from triptych.run.checkpoints import AtomicCheckpointIO
from triptych.run.directory import RunDirectory
from triptych.run.processes import launch_id

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
# Keys of ``trainer`` that are not passed to Lightning, as this module handles them itself.
OURS = ("max_epochs", "limit_train_batches", "enable_progress_bar", "profiler", "tf32")


class NoProfiler(PassThroughProfiler):
    """A profiler without overhead; Lightning's own no-op creates a generator for every hook."""

    profile = nullcontext  # type: ignore[assignment]  # a context manager, too


def steps_of(config: Config, items: int) -> int:
    """Return the steps of a fit: max_steps, or ceil(epochs * batches / accumulated)."""
    node = config["trainer"]
    if node["max_steps"]:
        return int(node["max_steps"])
    batches: float = node["overfit_batches"] or items / config["data"]["batch_size"]
    limit = node.get("limit_train_batches")
    if isinstance(limit, float):
        batches *= limit
    elif limit is not None:
        batches = min(batches, limit)
    steps = node["max_epochs"] * batches / node["accumulate_grad_batches"]
    return max(1, math.ceil(round(steps, 6)))


def is_sharded(config: Config) -> bool:
    """Return whether gradients and weights are split among the processes."""
    return str(config["trainer"]["strategy"]).startswith("fsdp")


def build_trainer(
    config: Config, run: RunDirectory | None, callbacks: list[Any], steps: int = -1
) -> pl.Trainer:
    """Build Lightning's Trainer for a fit of ``steps`` steps, or for evaluation without a ``run``.

    Raises UserError for settings that this machine does not support.
    """
    check_sharded(config)
    node = {key: value for key, value in config["trainer"].items() if key not in OURS}
    node["max_steps"] = steps
    node["strategy"] = _strategy(node)
    # Lightning's val_check_interval counts batches, ours counts steps.
    node["val_check_interval"] *= node["accumulate_grad_batches"]
    own: Config = {"num_sanity_val_steps": 0, "enable_model_summary": False} | node
    trainer: pl.Trainer = build(
        own,
        "trainer",
        max_epochs=-1,  # No limit: max_steps ends the fit.
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,  # Our loaders split batches over ranks without padding.
        enable_progress_bar=False,  # The callback Progress shows one.
        profiler=_profiler(config, run),
        enable_checkpointing=False,  # The callback CheckpointSaver saves checkpoints.
        callbacks=callbacks,
        logger=[] if run else False,
        plugins=[AtomicCheckpointIO(), *_cluster_environments()],
        default_root_dir=str(run.path) if run else None,
    )
    # Our loader applies limit_train_batches by repeating the first batches, without ending an
    # epoch: the end of an epoch would end the accumulation of gradients early.
    trainer.limit_train_batches = 1.0
    return trainer


def check_sharded(config: Config) -> None:
    """Raise UserError for settings that do not work with sharded weights."""
    if not is_sharded(config):
        return
    if config["callbacks"].get("ema"):
        raise UserError(
            "trainer.strategy=fsdp: averages of sharded weights are not supported; pass "
            "callbacks.ema=null weights=raw"
        )
    clip = config["trainer"]["gradient_clip_val"]
    if clip:
        raise UserError(
            f"trainer.gradient_clip_val={clip}: clipping is not supported with sharded weights; "
            "pass null"
        )


def _strategy(node: Config) -> Any:
    """Return Lightning's name of the strategy; for DDP one with a fixed order of summation.

    Plain DDP rebuilds its gradient buckets after the first step of each start. This changes the
    order of summation over three or more ranks, so a resumed run would differ in the last digits.
    """
    devices = node["devices"]
    several = node["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)
    if node["strategy"] == "ddp" or (node["strategy"] == "auto" and several):
        return "ddp_find_unused_parameters_true"
    return node["strategy"]


def _profiler(config: Config, run: RunDirectory | None) -> Any:
    """Return the profiler.

    A profiler that is passed to Lightning by name prints, or writes into the current folder.
    """
    name = config["trainer"].get("profiler")
    if not name or run is None:
        return NoProfiler()
    return PROFILERS[name](dirpath=str(run / "profile"), filename=name)


def _cluster_environments() -> list[Any]:
    """Return [LightningEnvironment()], or [] if torchrun or srun has launched the processes.

    Without it, Lightning would detect an enclosing SLURM batch job and take its tasks for ranks.
    """
    if launch_id():
        return []
    return [LightningEnvironment()]
