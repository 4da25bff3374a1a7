"""Build Lightning's Trainer, and compute the number of steps of a fit."""

import math
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import FSDPPrecision
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecision

from triptych.config.build import build
from triptych.records import Config
from triptych.run.checkpoints import AtomicCheckpointIO
from triptych.run.directory import RunDirectory
from triptych.run.processes import launch_id

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
# Keys of ``trainer`` that are not passed to Lightning, as this module handles them itself.
OURS = ("max_epochs", "limit_train_batches", "enable_progress_bar", "profiler", "tf32")

# Lightning's other names of single precision, which its plugins do not know.
FULL_PRECISION: dict[Any, Any] = {None: "32-true", 32: "32-true"}


class NoProfiler(PassThroughProfiler):
    """A profiler that does nothing; Lightning's own creates a generator for every hook."""

    profile = nullcontext  # type: ignore[assignment]  # a context manager, too


class ShardedPrecision(FSDPPrecision):
    """Mixed precision with FSDP by autocast alone, as on one device.

    Lightning's FSDPPrecision also converts parameters, inputs and buffers. Validation would then
    read rounded weights, and metrics would round their sums, which are in double precision.
    """

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        return MixedPrecision()


def count_steps(config: Config, items: int) -> int:
    """Return the number of steps of a fit: max_steps, or ceil(epochs * batches / accumulated).

    ``items``: number of training items.
    """
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
    """Return whether the strategy (FSDP) splits weights and gradients among the processes."""
    return str(config["trainer"]["strategy"]).startswith("fsdp")


def build_trainer(
    config: Config,
    run: RunDirectory | None,
    callbacks: list[Any],
    steps: int = -1,
    may_skip_weights: bool = True,
) -> pl.Trainer:
    """Build Lightning's Trainer for a fit of ``steps`` steps or, without ``run``, to evaluate.

    ``may_skip_weights``: whether a step may leave a trained weight without a gradient.
    """
    node = {key: value for key, value in config["trainer"].items() if key not in OURS}
    node["max_steps"] = steps
    background = _uses_gpu(node)
    plugins: list[Any] = [AtomicCheckpointIO(background), *_cluster_environments()]
    if is_sharded(config) and run is None:
        # Models are evaluated with whole weights, which need no gradients and no optimizer.
        node["strategy"] = "ddp"
    elif is_sharded(config):
        precision = node.pop("precision")
        plugins.append(ShardedPrecision(FULL_PRECISION.get(precision, precision)))
    node["strategy"] = _strategy(node, may_skip_weights)
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
        plugins=plugins,
        default_root_dir=str(run.path) if run else None,
    )
    # Our loader applies limit_train_batches by repeating the first batches, without ending an
    # epoch: the end of an epoch would end the accumulation of gradients early.
    trainer.limit_train_batches = 1.0
    # With several ranks, Lightning would send a received SIGTERM to all of them at each step and
    # wait for it; ``Stop`` handles signals. ``test_trainer_keys`` fails if the method is renamed.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _no_broadcast  # type: ignore[method-assign]
    return trainer


def _no_broadcast() -> None:
    """Do nothing, in place of Lightning's broadcast of SIGTERM."""


def _strategy(node: Config, may_skip_weights: bool) -> Any:
    """Return Lightning's strategy; for DDP on CPUs one with a fixed order of summation.

    Plain DDP rebuilds its gradient buckets after the first step of each start. This changes the
    order of summation over three or more ranks, so a resumed run would differ in the last digits.
    The search for unused weights keeps the buckets. On GPUs each step would wait for this search,
    so there it is made only if some weights may be unused.
    """
    devices = node["devices"]
    several = node["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)
    if node["strategy"] == "ddp" or (node["strategy"] == "auto" and several):
        searches = may_skip_weights or not _uses_gpu(node)
        return "ddp_find_unused_parameters_true" if searches else "ddp"
    return node["strategy"]


def _uses_gpu(node: Config) -> bool:
    """Return whether the trainer's configuration ``node`` uses a GPU of NVIDIA or AMD."""
    if node["accelerator"] == "auto":
        return torch.cuda.is_available()
    return node["accelerator"] in ("gpu", "cuda")


def _profiler(config: Config, run: RunDirectory | None) -> Any:
    """Return the profiler in the configuration; it writes into the run's folder ``profile``.

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
