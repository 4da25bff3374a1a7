"""Set up and run the fit: trainer, callbacks, loggers; or skip it when nothing is trainable."""

import warnings
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from triptych.callbacks.gradients import Gradients
from triptych.callbacks.metrics import Metrics, build_metrics
from triptych.config.archive import SCHEMA
from triptych.config.build import build
from triptych.data.batch import Batch
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.contract import PartOutput, check_outputs
from triptych.models.lr_schedule import refused_keys
from triptych.run.averaging import check_averaging
from triptych.run.checkpointing import Keep
from triptych.run.checkpoints import LAST, save_checkpoint
from triptych.run.directory import RunDirectory
from triptych.run.experiment import Experiment
from triptych.run.initialization import Origin
from triptych.run.leakage import log_line
from triptych.run.loggers import build_loggers
from triptych.run.model import check_compiler, compiled
from triptych.run.peers import Peers
from triptych.run.processes import rank
from triptych.run.progress import Progress, SampleGrid
from triptych.run.provenance import add_execution
from triptych.run.stopping import Stop
from triptych.run.trainer import build_trainer, steps_of

FEW = 4  # items on which a model is checked before its first step


@dataclass(frozen=True)
class Fit:
    """Trainer, loggers and callbacks of a fit."""

    trainer: pl.Trainer
    loggers: list[Logger]
    keep: Keep
    gradients: Gradients
    record: dict[str, Any]  # what each checkpoint says of its run

    @property
    def device(self) -> str:
        """Name of the device."""
        device = self.trainer.strategy.root_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def __call__(self, run: RunDirectory, experiment: Experiment, origin: Origin) -> None:
        """Fit the model, unless it is another run's or has no trainable parameters."""
        model, checkpoint = experiment.model, origin.adopted
        if checkpoint is None and any(p.requires_grad for p in model.parameters()):
            with compiled(model, experiment.config):
                self.trainer.fit(model, experiment.data, ckpt_path=origin.start)
            return
        if checkpoint is None:
            checkpoint = untrained(model) | {"triptych": self.record}
        if rank() == 0:
            save_checkpoint(checkpoint, run / "checkpoints" / LAST)


def check_first_step(experiment: Experiment, device: torch.device) -> None:
    """Check the outputs of all parts on a few items of the first batch; UserError for the first mismatch."""
    x, condition, index = experiment.data.train_dataloader().batch(0)
    few, model = min(FEW, len(x)), experiment.model
    condition = None if condition is None else condition[slice(few)].to(device)
    batch = Batch(x[:few].to(device), condition, index[:few].to(device))
    changed = [
        PartOutput("augmentation", change.__call__, batch.x, ((few, *experiment.data.shape),))
        for change in experiment.data.augmentations[-1:]
    ]
    check_outputs(model.to(device), chain(changed, model.gives(batch)))


def untrained(model: BoundModel) -> dict[str, Any]:
    """Return a checkpoint of a model without trainable parameters."""
    averages = {"EMA": {"name": "ema", "average": {}, "others": {}}}
    return {"state_dict": model.state_dict(), "callbacks": averages, "global_step": 0}


def build_fit(
    run: RunDirectory,
    experiment: Experiment,
    origin: Origin,
    progress: Progress,
    stop: Stop,
    peers: Peers | None,
) -> Fit:
    """Build trainer, callbacks and loggers, and record the start of the run.

    Loggers come last, once nothing is left to be refused.

    Raises:
        UserError: what the machine or the model does not have.
    """
    config, data, samples = experiment.config, experiment.data, experiment.config["samples"]
    provenance, validated = run.provenance(), len(data.splits["val"]) > 0
    if not config.get("test", True) and not validated:
        raise UserError("test=false: a validation set is needed (data.val_size=0 leaves nothing to report)")
    if config.get("test", True) and not len(data.splits["test"]):
        raise UserError(f"test=true: data {data.name} has no test items; pass test=false")
    record = {"schema": SCHEMA, "config": config, "data": origin.data}
    monitor = "val/bound" if validated else None
    keep = Keep(run, monitor, config["trainer"]["val_check_interval"], stop, record)
    gradients = Gradients(config["trainer"]["gradient_clip_val"])
    sharded = str(config["trainer"]["strategy"]).startswith("fsdp")  # no process has a whole gradient
    callbacks = [
        *([] if sharded else [gradients]),
        *(build(node, f"callbacks.{name}") for name, node in config["callbacks"].items() if node),
        *build_metrics(config),
        *(
            [SampleGrid(experiment.drawing, run / "samples", samples["n"], samples["pictures"])]
            if experiment.drawing is not None
            else []
        ),
        progress,
        stop,
        keep,  # last: what the others have done after a step is in its checkpoint
    ]
    check_averaging(config, callbacks, validated)
    steps, model = steps_of(config, len(data.splits["train"])), experiment.model
    trainer = build_trainer(config, run, callbacks, [], peers, steps)
    if data.batch_size % trainer.world_size:
        processes = f"the {trainer.world_size} processes"
        raise UserError(f"data.batch_size={data.batch_size}: must be a multiple of {processes}")
    check_compiler(config, model, trainer.strategy.root_device)
    model.trainer, trainer.datamodule = trainer, data  # type: ignore[attr-defined]  # as its fit will
    for metrics in filter(lambda one: isinstance(one, Metrics), callbacks):
        metrics.setup(trainer, model, "fit")
    if origin.adopted is None and any(p.requires_grad for p in model.parameters()):
        made: Any = model.configure_optimizers()
        if isinstance(model.lr_schedule, partial) and "lr_scheduler" in made:  # of torch's, it may fail late
            with refused_keys("lr_schedule", model.lr_schedule), warnings.catch_warnings(action="ignore"):
                made["lr_scheduler"]["scheduler"].step()
        if origin.start is None and not sharded:
            check_first_step(experiment, trainer.strategy.root_device)
        warmup = getattr(model.lr_schedule, "warmup_steps", 0)
        if origin.start is None and warmup >= trainer.max_steps:
            log_line(
                run,
                f"lr_schedule.warmup_steps={warmup}: all {trainer.max_steps} steps are warm-up; use fewer",
            )
    trainer.loggers = build_loggers(config, provenance, run, origin.step)
    fit = Fit(trainer, trainer.loggers, keep, gradients, record)
    if rank() == 0:
        log_line(run, f"resumed at step {origin.step}" if origin.step else "")
        log_line(run, add_execution(run, fit.device, trainer.world_size, origin.step, config, origin.facts))
    return fit
