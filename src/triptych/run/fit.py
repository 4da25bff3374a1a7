"""Set up and run the fit: Lightning's trainer, callbacks, loggers; or skip it when nothing is trainable."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import AdvancedProfiler, PassThroughProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies.launchers import subprocess_script

from triptych.callbacks.ema import EMA
from triptych.callbacks.gradients import Gradients
from triptych.callbacks.metrics import build_metrics, metrics_of
from triptych.config.build import build
from triptych.config.check import warm_up_line
from triptych.config.identity import check_cores
from triptych.config.source import choices_of
from triptych.data.batch import Batch
from triptych.errors import UserError
from triptych.models.contract import check_output, try_guides, try_sampler, undisturbed
from triptych.models.denoiser_model import DenoiserModel
from triptych.run.checkpoints import (
    LAST,
    AtomicCheckpointIO,
    Keep,
    check_states,
    save_checkpoint,
)
from triptych.run.directory import SCHEMA, RunDirectory, log_line
from triptych.run.drawing import Experiment
from triptych.run.initialization import Origin
from triptych.run.loggers import build_loggers
from triptych.run.model import check_compiler, compiled
from triptych.run.parsing import error_line
from triptych.run.processes import launch, rank
from triptych.run.progress import Progress, SampleGrid
from triptych.run.provenance import add_execution
from triptych.run.reopen import open_weights
from triptych.run.stopping import Peers, Stop
from triptych.run.untrusted import interpreting

LIGHTNINGS_OWN = subprocess_script._launch_process_observer
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
FEW = 4  # items on which a model is tried before its first step


class NoProfiler(PassThroughProfiler):
    """Time nothing, without the generator that Lightning makes for each of a step's hundred hooks."""

    profile = nullcontext  # type: ignore[assignment]


@dataclass(frozen=True)
class Fit:
    """Trainer of a fit, what keeps its checkpoints, and what goes on after it."""

    trainer: pl.Trainer
    keep: Keep
    progress: Sequence[pl.Callback]  # which show it, and wait for signals
    peers: Peers | None

    @property
    def device(self) -> str:
        device = self.trainer.strategy.root_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def __call__(self, run: RunDirectory, experiment: Experiment, origin: Origin) -> None:
        """Fit the model, unless it is another run's or has no trainable parameters."""
        model, checkpoint = experiment.model, origin.adopted
        if checkpoint is None and any(p.requires_grad for p in model.parameters()):
            with (
                compiled(model, experiment.config),
                interpreting(origin.start, lambda: self.trainer.global_step > origin.step + 1),
            ):
                self.trainer.fit(model, experiment.data, ckpt_path=origin.start)
            return
        if checkpoint is None:
            averages = {"EMA": {"name": "ema", "average": {}, "others": {}}}
            weights = {"state_dict": model.state_dict(), "callbacks": averages, "global_step": 0}
            checkpoint = weights | {"triptych": self.keep.record}
        if rank() == 0:
            save_checkpoint(checkpoint, run / "checkpoints" / LAST)


def check_first_step(experiment: Experiment, device: torch.device) -> None:
    """Try all parts on a few items of the first batch; UserError for the first that does not fit."""
    model, data, config = experiment.model.to(device), experiment.data, experiment.config
    x, condition, index = data.train_dataloader().batch(0)
    drawing, judged = experiment.drawing, data.splits["val" if len(data.splits["val"]) else "test"]
    if condition is not None:
        condition = condition[slice(FEW)].to(device)
    batch = Batch(x[:FEW].to(device), condition, index[:FEW].to(device))
    with undisturbed(model):
        for change in data.augmentations[-1:]:
            check_output("augmentation", change.__call__, batch.x, (len(batch.x), *data.shape))
        model.try_parts(batch)
        if drawing and isinstance(model, DenoiserModel) and (config["samples"]["n"] or experiment.measured):
            if not drawing.sources:
                try_guides(drawing, [key for key in ("threshold", "guidance") if config.get(key)], model)
            try_sampler(drawing.sampler, model)
        held = judged.batch(torch.arange(min(FEW, len(judged))))
        metrics_of(model.trainer).try_own(model, model.transfer_batch_to_device(held, device, 0))
        if experiment.reference is not None and drawing:
            experiment.reference.try_own(drawing.conditional)


def check_loads(experiment: Experiment) -> None:
    """Check that a model built anew takes the state of this one, as it will after the fit; UserError."""
    try:
        open_weights(experiment.config, experiment.data).load_state_dict(experiment.model.state_dict())
    except RuntimeError as error:
        problem = f"a new one does not take its state ({error_line(error)})"
        raise UserError(f"model: {problem}; make all layers and buffers in __init__") from error


def check_averaging(config: dict[str, Any], callbacks: list[pl.Callback], validated: bool) -> None:
    """Check that validation, and so "best", uses the weights that the run reports; else UserError."""
    weights, averagers = config["weights"], [c for c in callbacks if isinstance(c, EMA)]
    if weights != "raw" and not averagers and not config.get("trained"):
        raise UserError(f"weights={weights}: callbacks.ema=null keeps no average; pass weights=raw")
    if weights == "chosen" and config["checkpoint"] == "best":
        problem = "the best moment is decided by one average, the choice made at the end"
        raise UserError(f"weights=chosen: {problem}; pass checkpoint=last or weights=ema")
    # after a validation the second would put back the first one's average
    if len(averagers) > 1 and weights != "raw" and not config.get("trained"):
        names = ", ".join(type(one).__name__ for one in averagers)
        raise UserError(f"callbacks: {names} average the same weights; keep one, with callbacks.ema.others")
    if weights == "chosen" and averagers and len(averagers[0].lengths) < 2:
        raise UserError("weights=chosen: one average is kept; add callbacks.ema.others=[0.1], or weights=ema")
    if weights == "chosen" and not validated:
        raise UserError("weights=chosen: there are no validation items to choose by; pass weights=ema")
    for average in averagers:
        average.validates = weights != "raw"


def build_fit(
    run: RunDirectory,
    experiment: Experiment,
    origin: Origin,
    progress: Progress,
    stop: Stop,
    peers: Peers | None,
) -> Fit:
    """Build trainer, callbacks and, once nothing is left to be refused, loggers; record the start."""
    config, data, drawing = experiment.config, experiment.data, experiment.drawing
    samples = config["samples"]
    validated = len(data.splits["val"]) > 0
    if not config.get("test", True) and not validated:
        raise UserError("test=false: a validation set is needed (data.val_size=0 leaves nothing to report)")
    if config.get("test", True) and not len(data.splits["test"]):
        raise UserError(f"test=true: data {data.name} has no test items; pass test=false")
    record = {"schema": SCHEMA, "config": config, "data": origin.data}
    monitor = "val/bound" if validated else None
    node = config["trainer"]
    keep = Keep(run, monitor, node["val_check_interval"], stop, record)
    gradients = Gradients(node["gradient_clip_val"], node.get("gradient_clip_algorithm") == "value")
    sharded = str(node["strategy"]).startswith("fsdp")  # no process has a whole gradient
    callbacks = [
        *([] if sharded else [gradients]),
        *(build(node, f"callbacks.{name}") for name, node in config["callbacks"].items() if node),
        *build_metrics(config),
        *([SampleGrid(drawing, run / "samples", samples["n"], samples["pictures"])] if drawing else []),
        progress,
        stop,
        keep,  # last: what the others have done after a step is in its checkpoint
    ]
    check_averaging(config, callbacks, validated)
    steps, model = steps_of(config, len(data.splits["train"])), experiment.model
    trainer = build_trainer(config, run, callbacks, peers, steps)
    if data.batch_size % trainer.world_size:
        processes = f"the {trainer.world_size} processes"
        raise UserError(f"data.batch_size={data.batch_size}: must be a multiple of {processes}")
    for name in ("val", "test"):  # a process without a batch would skip what the others wait for
        if 0 < (n := len(data.splits[name])) < trainer.world_size:
            few = f"{trainer.world_size} processes, {n} {name} items"
            raise UserError(f"trainer.devices: {few}; use fewer processes")
    share, each = trainer.limit_val_batches, len(data.splits["val"]) // trainer.world_size
    batches = math.ceil(each / data.eval_batch_size)  # of the process with the fewest
    if isinstance(share, float) and batches * share < 1 <= batches:
        processes = " a process" if trainer.world_size > 1 else ""
        problem = f"less than one of {batches} validation batches{processes}"
        raise UserError(f"trainer.limit_val_batches={share}: {problem}; pass a number of batches")
    check_compiler(config, model, trainer.strategy.root_device)
    model.trainer, trainer.datamodule = trainer, data  # type: ignore[attr-defined]  # as its fit will
    metrics_of(trainer).setup(trainer, model, "fit")
    if origin.adopted is None and any(p.requires_grad for p in model.parameters()):
        model.configure_optimizers()  # which refuses wrong keys
        anew, every = origin.start is None, node["val_check_interval"]
        if anew and not sharded:
            check_first_step(experiment, trainer.strategy.root_device)
        if anew:
            check_states(model, callbacks)
            check_loads(experiment)
        if anew and config["checkpoint"] == "best" and (every > steps or not validated):
            problem = f"trainer.val_check_interval={every} is beyond the {steps} steps; lower it, or"
            problem = problem if validated else f"data {data.name} has no validation items;"
            raise UserError(f"checkpoint=best: {problem} pass checkpoint=last")
        warmup = getattr(model.lr_schedule, "warmup_steps", 0)
        log_line(run, warm_up_line(warmup, trainer.max_steps) if anew else "")
        bundled = {"experiment", "ablation", "paper"} & run.provenance.choices.keys()
        if anew and not bundled and (name := data.name) in choices_of("experiment"):
            other = f"experiment={name} has settings for these data"
            log_line(run, f"data={name}: the other settings are for digits; {other}")
    trainer.loggers = build_loggers(run, origin.step, lambda: keep.seconds)
    fit = Fit(trainer, keep, [progress, stop], peers)
    if rank() == 0:
        log_line(run, f"resumed at step {origin.step}" if origin.step else "")
        log_line(run, add_execution(run, fit.device, trainer.world_size, origin.step, config, origin.facts))
    return fit


def steps_of(config: dict[str, Any], items: int) -> int:
    """Return the steps of a fit: max_steps, or ceil(epochs * batches / accumulated) of so many ``items``."""
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
    peers: Peers | None = None,
    steps: int = -1,
) -> pl.Trainer:
    """Build Lightning's Trainer for a fit of ``steps``; UserError for what the machine does not have."""
    # its own watch kills all processes, the first one too, without a word of why
    setattr(subprocess_script, "_launch_process_observer", peers.watch if peers else LIGHTNINGS_OWN)  # noqa: B010
    node = config["trainer"] | {"max_steps": steps}
    for key in ("max_epochs", "limit_train_batches"):  # ``steps`` follow from them
        node.pop(key, None)
    devices, accelerator = node["devices"], node["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if isinstance(devices, int) and on_cpu:
        check_cores({"trainer.devices": devices}, "trainer.devices")
    node["val_check_interval"] *= node["accumulate_grad_batches"]  # ours counts steps, Lightning's batches
    clip = node["gradient_clip_val"]
    sharded = str(node["strategy"]).startswith("fsdp")
    if sharded and config["callbacks"].get("ema"):
        problem = "a shard's average is not the network's"
        raise UserError(f"trainer.strategy=fsdp: {problem}; pass callbacks.ema=null weights=raw")
    if sharded and clip:
        problem = "a norm that lies in shards is not clipped"
        raise UserError(f"trainer.gradient_clip_val={clip}: {problem}; pass null")
    node.pop("enable_progress_bar", None)  # ours is a callback
    profiler: Any = NoProfiler()
    if (kind := node.pop("profiler", None)) and run:  # Lightning's choice prints, or writes where it is
        profiler = PROFILERS[kind](dirpath=str(run / "profile"), filename=kind)
    several = node["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)
    if node["strategy"] == "ddp" or (node["strategy"] == "auto" and several):
        # else DDP sorts its buckets anew after a start's first step, which changes the order in which three
        # processes or more are summed: a resumed run would differ in the last digit
        node["strategy"] = "ddp_find_unused_parameters_true"
    # in a batch script's own process SLURM's tasks are not the trainer's, though Lightning would count them
    environment = [] if launch() else [LightningEnvironment()]
    trainer: pl.Trainer = build(
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
        logger=[] if run else False,
        plugins=[AtomicCheckpointIO(), *environment],
        default_root_dir=str(run.path) if run else None,
    )
    trainer.limit_train_batches = 1.0  # our loader repeats the first batches; an epoch's end would end a step
    return trainer
