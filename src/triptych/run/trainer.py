"""Lightning's Trainer, as every run and evaluation uses it."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies.launchers import subprocess_script

from triptych.config.build import build
from triptych.config.names import cores
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.checkpoints import AtomicCheckpointIO
from triptych.run.directory import RunDirectory
from triptych.run.peers import Peers

LIGHTNINGS_OWN = subprocess_script._launch_process_observer
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
SIMULATED = 8  # processes on a CPU with fewer cores: slow, but a way to see what several would do


def steps_of(config: dict[str, Any], items: int) -> int:
    """Return steps of a fit: ``trainer.max_steps``, or those of ``max_epochs`` over so many training items.

    ceil(epochs * batches / accumulate_grad_batches) with batches = items / batch_size, of which
    ``limit_train_batches`` leaves so many, or that share.
    """
    node = config["trainer"]
    if node["max_steps"]:
        return int(node["max_steps"])
    batches: float = node["overfit_batches"] or items / config["data"]["batch_size"]
    limit = node.get("limit_train_batches")
    if limit is not None:
        batches = batches * limit if isinstance(limit, float) else min(batches, limit)
    steps = node["max_epochs"] * batches / node["accumulate_grad_batches"]
    return max(1, math.ceil(round(steps, 6)))


def build_trainer(
    config: dict[str, Any],
    run: RunDirectory | None,
    callbacks: list[Any],
    loggers: list[Any] | bool,
    peers: Peers | None = None,
    steps: int = -1,
) -> pl.Trainer:
    """Build Lightning's Trainer for a fit of ``steps``, with what never varies.

    Raises:
        UserError: the machine does not have what the configuration names.
    """
    # its own watch kills all processes, the first one too, without a word of why
    setattr(subprocess_script, "_launch_process_observer", peers.watch if peers else LIGHTNINGS_OWN)  # noqa: B010
    node = config["trainer"] | {"max_steps": steps}
    for key in ("max_epochs", "limit_train_batches"):  # ``steps`` follow from them
        node.pop(key, None)
    devices, accelerator = node["devices"], node["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    most = max(cores(), SIMULATED)
    if isinstance(devices, int) and on_cpu and not 1 <= devices <= most:
        raise UserError(
            f"trainer.devices={devices}: must be 1 to {most} on this machine's {cores()} CPU cores"
        )
    node["val_check_interval"] *= node["accumulate_grad_batches"]  # ours counts steps, Lightning's batches
    clip = node["gradient_clip_val"]
    if str(node["strategy"]).startswith("fsdp") and config["callbacks"].get("ema"):
        raise UserError(
            "trainer.strategy=fsdp: a shard's average is not the network's; "
            "pass callbacks.ema=null weights=raw"
        )
    if str(node["strategy"]).startswith("fsdp") and clip:
        raise UserError(
            f"trainer.gradient_clip_val={clip}: a norm that lies in shards is not clipped; pass null"
        )
    node.pop("enable_progress_bar", None)  # ours is a callback
    profiler = None
    if (kind := node.pop("profiler", None)) and run:  # Lightning's choice prints, or writes where it is
        profiler = PROFILERS[kind](dirpath=str(run / "profile"), filename=kind)
    several = node["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)
    if node["strategy"] == "ddp" or (node["strategy"] == "auto" and several):
        # DDP sorts its buckets anew after a start's first step, and where a number lies in a bucket decides
        # the order in which three processes or more are summed: a resumed run would differ in the last digit.
        # Looking for unused parameters forbids that; and free bits may leave some unused.
        node["strategy"] = "ddp_find_unused_parameters_true"
    # in a batch script's own process SLURM's tasks are not the trainer's, though Lightning would count them
    environment = [] if processes.launch() else [LightningEnvironment()]
    return build(
        node,
        "trainer",
        max_epochs=-1,  # one endless epoch: steps decide
        check_val_every_n_epoch=None,
        num_sanity_val_steps=node.pop("num_sanity_val_steps", 0),
        use_distributed_sampler=False,  # our loaders know the processes, and pad nothing
        enable_progress_bar=False,
        profiler=profiler,
        enable_model_summary=node.pop("enable_model_summary", False),
        enable_checkpointing=False,  # ours keeps them
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), *environment],
        default_root_dir=str(run.path) if run else None,
    )
