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
from triptych.run.checkpoints import AtomicCheckpointIO
from triptych.run.directory import RunDirectory
from triptych.run.processes import launch

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
# Keys of ``trainer`` that Lightning does not have, or that this module handles.
OURS = ("max_epochs", "limit_train_batches", "enable_progress_bar", "profiler")


class NoProfiler(PassThroughProfiler):
    """A profiler that measures nothing.

    Lightning's own makes a generator for each hook of a step.
    """

    profile = nullcontext  # type: ignore[assignment]


def steps_of(config: dict[str, Any], items: int) -> int:
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


def is_sharded(config: dict[str, Any]) -> bool:
    """Return whether gradients and weights are split among the processes."""
    return str(config["trainer"]["strategy"]).startswith("fsdp")


def build_trainer(
    config: dict[str, Any], run: RunDirectory | None, callbacks: list[Any], steps: int = -1
) -> pl.Trainer:
    """Build Lightning's Trainer for a fit of ``steps``; UserError: the machine cannot run it."""
    check_sharded(config)
    node = {key: value for key, value in config["trainer"].items() if key not in OURS}
    node["max_steps"] = steps
    node["strategy"] = _strategy(node)
    # Lightning's key counts batches, ours steps.
    node["val_check_interval"] *= node["accumulate_grad_batches"]
    own: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_model_summary": False} | node
    trainer: pl.Trainer = build(
        own,
        "trainer",
        max_epochs=-1,  # one endless epoch: steps decide
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,  # our loaders know the processes, and pad nothing
        enable_progress_bar=False,  # Progress shows one
        profiler=_profiler(config, run),
        enable_checkpointing=False,  # Keep saves them
        callbacks=callbacks,
        logger=[] if run else False,
        plugins=[AtomicCheckpointIO(), *_environment()],
        default_root_dir=str(run.path) if run else None,
    )
    # Our loader repeats the first batches itself; Lightning would end an accumulation with the
    # epoch.
    trainer.limit_train_batches = 1.0
    return trainer


def check_sharded(config: dict[str, Any]) -> None:
    """Raise UserError for settings that do not work with sharded weights."""
    if not is_sharded(config):
        return
    if config["callbacks"].get("ema"):
        problem = "a shard's average is not the network's"
        raise UserError(f"trainer.strategy=fsdp: {problem}; pass callbacks.ema=null weights=raw")
    clip = config["trainer"]["gradient_clip_val"]
    if clip:
        problem = "a norm that lies in shards is not clipped"
        raise UserError(f"trainer.gradient_clip_val={clip}: {problem}; pass null")


def _strategy(node: dict[str, Any]) -> Any:
    """Return Lightning's name of the strategy, or a DDP that sums in a fixed order.

    Usually DDP sorts its buckets again after the first step of a start, which changes the order in
    which three or more processes are summed: a resumed run would differ in the last digit.
    """
    devices = node["devices"]
    several = node["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)
    if node["strategy"] == "ddp" or (node["strategy"] == "auto" and several):
        return "ddp_find_unused_parameters_true"
    return node["strategy"]


def _profiler(config: dict[str, Any], run: RunDirectory | None) -> Any:
    """Return the profiler, which writes into the run's directory.

    Lightning's own choice by name would print, or write into the current folder.
    """
    name = config["trainer"].get("profiler")
    if not name or run is None:
        return NoProfiler()
    return PROFILERS[name](dirpath=str(run / "profile"), filename=name)


def _environment() -> list[Any]:
    """Return Lightning's own environment unless torchrun or srun has launched the processes.

    In a batch script, Lightning would otherwise use the tasks of the script's job.
    """
    if launch():
        return []
    return [LightningEnvironment()]
