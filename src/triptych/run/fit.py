"""Set up and run the fit: Lightning's trainer, callbacks and loggers.

The fit is left out if the model has nothing to train.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from triptych.callbacks.ema import EMA
from triptych.callbacks.metrics import build_metrics_callback, item_metrics_callback
from triptych.callbacks.tf32 import TF32
from triptych.config.build import build
from triptych.config.check import warm_up_warning
from triptych.data.base import DataModule
from triptych.errors import UserError
from triptych.models.gradients import Gradients
from triptych.records import Config
from triptych.run.checkpoints import CheckpointSaver, save_checkpoint
from triptych.run.directory import LAST, SCHEMA, RunDirectory, log_line
from triptych.run.draws import choose_draws
from triptych.run.experiment import Experiment
from triptych.run.initialization import Origin
from triptych.run.loggers import build_loggers
from triptych.run.model import compile_networks
from triptych.run.processes import rank
from triptych.run.progress import Progress, SampleGrid
from triptych.run.provenance import add_execution
from triptych.run.session import Session
from triptych.run.trainer import build_trainer, count_steps, is_sharded
from triptych.run.trials import check_model_loads, check_states, try_experiment
from triptych.run.untrusted import reraise_as_foreign_checkpoint

# The state of an EMA callback that has no weights.
NO_AVERAGE = {"EMA": {"name": "ema", "average": {}, "others": {}}}


@dataclass(frozen=True)
class Fit:
    """The trainer of a fit, with the callbacks that the run needs after the fit."""

    trainer: pl.Trainer
    saver: CheckpointSaver
    progress: Sequence[pl.Callback]  # callbacks that show progress and handle signals

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type


def build_fit(session: Session, experiment: Experiment, origin: Origin, progress: Progress) -> Fit:
    """Build the trainer, callbacks and loggers of a fit, and record the start in the provenance.

    Loggers are built after all checks, so that a refused run does not appear in them.
    """
    run, config = session.run, experiment.config
    data, model = experiment.data, experiment.model
    check_splits(config, data)
    keep = CheckpointSaver(
        run,
        monitor="val/bound" if len(data.splits["val"]) else None,
        every=config["trainer"]["val_check_interval"],
        stop=session.stop,
        record={"schema": SCHEMA, "config": config, "data": origin.data},
    )
    shown = [progress, session.stop]
    callbacks = [*build_callbacks(run, experiment), *shown, keep]
    steps = count_steps(config, len(data.splits["train"]))
    trainer = build_trainer(config, run, callbacks, steps, model.may_skip_weights())
    check_processes(data, trainer.world_size)
    model.random = choose_draws(run, config, origin.draws, trainer.strategy.root_device)
    data.random = model.random
    keep.record["draws"] = model.random.name
    connect(trainer, experiment)
    if is_fitted(experiment, origin):
        model.configure_optimizers()  # Raises UserError for wrong keys before anything is logged.
        if origin.start is None:
            check_first_start(experiment, trainer, callbacks)
            warm_up = getattr(model.lr_schedule, "warmup_steps", 0)
            log_line(run, warm_up_warning(warm_up, trainer.max_steps))

    trainer.loggers = build_loggers(run, origin.step, lambda: keep.seconds)
    fit = Fit(trainer, keep, shown)
    if origin.step:
        log_line(run, f"resumed at step {origin.step}")
    if rank() == 0:
        add_execution(run, fit.device_name, trainer.world_size, origin.step, origin.data_summary)
    return fit


def connect(trainer: pl.Trainer, experiment: Experiment) -> None:
    """Connect trainer, model and data before the fit, as Lightning does when the fit starts.

    ``configure_optimizers`` and the checks before the fit read ``model.trainer``.
    """
    model = experiment.model
    model.trainer = trainer
    trainer.datamodule = experiment.data  # type: ignore[attr-defined]  # Lightning sets it, too
    item_metrics_callback(trainer).setup(trainer, model, "fit")


def build_callbacks(run: RunDirectory, experiment: Experiment) -> list[pl.Callback]:
    """Build the callbacks of a fit: gradient clipping, configured callbacks, metrics, sample grids.

    ``CheckpointSaver`` must come after them, so that a checkpoint contains what they change at the
    end of its step.
    """
    config, drawing = experiment.config, experiment.drawing
    callbacks: list[pl.Callback] = []
    if config["trainer"].get("tf32"):
        callbacks.append(TF32())
    if not is_sharded(config):
        node = config["trainer"]
        by_value = node.get("gradient_clip_algorithm") == "value"
        callbacks.append(Gradients(node["gradient_clip_val"], by_value))
    for name, node in config["callbacks"].items():
        if node:
            callbacks.append(build(node, f"callbacks.{name}"))
    callbacks += build_metrics_callback(config)
    # Rank 0 alone draws the pictures of a validation, and it has only its shard of the weights.
    if drawing is not None and not is_sharded(config):
        samples = config["samples"]
        callbacks.append(SampleGrid(drawing, run / "samples", samples["n"], samples["pictures"]))
    averagers = [callback for callback in callbacks if isinstance(callback, EMA)]
    check_averaging(config, averagers, validated=len(experiment.data.splits["val"]) > 0)
    for averager in averagers:
        averager.validates = config["weights"] != "raw"
    return callbacks


def check_splits(config: Config, data: DataModule) -> None:
    """Raise UserError if the split on which the run would report has no items."""
    tested = config.get("test", True)
    split = "test" if tested else "val"
    if not len(data.splits[split]):
        raise UserError(
            f"test={str(tested).lower()}: data {data.name} has no {split} items to report; "
            "set data.val_size with test=false, or choose data with a test set"
        )


def check_averaging(config: Config, averagers: Sequence[EMA], validated: bool) -> None:
    """Raise UserError unless one callback averages the weights, if the run reports an average.

    ``averagers`` are all such callbacks; ``validated``: whether the run has validation items.
    """
    weights = config["weights"]
    if weights == "raw" or config.get("trained"):
        return
    if not averagers:
        raise UserError(f"weights={weights}: callbacks.ema=null keeps no average; pass weights=raw")
    if len(averagers) > 1:
        # After validation, the second callback would restore the average of the first as weights.
        raise UserError(
            "callbacks: several of them average the weights; keep one, and list the lengths of "
            "further averages in callbacks.ema.others"
        )
    if weights == "chosen" and not validated:
        raise UserError(
            "weights=chosen: needs validation items to choose an average; pass weights=ema"
        )


def check_processes(data: DataModule, processes: int) -> None:
    """Raise UserError unless a batch can be split equally over the processes.

    Each process must also get items of the validation and the test split.
    """
    if data.batch_size % processes:
        raise UserError(
            f"data.batch_size={data.batch_size}: must be a multiple of the number of processes, "
            f"{processes}"
        )
    for name in ("val", "test"):
        n = len(data.splits[name])
        if 0 < n < processes:
            # A process without a batch would skip collectives that the other processes wait for.
            raise UserError(
                f"trainer.devices: {processes} processes for {n} {name} items; use fewer processes"
            )


def is_fitted(experiment: Experiment, origin: Origin) -> bool:
    """Return whether this run trains a model: it has trainable parameters and is not adopted."""
    return origin.adopted is None and any(p.requires_grad for p in experiment.model.parameters())


def check_first_start(
    experiment: Experiment, trainer: pl.Trainer, callbacks: Sequence[pl.Callback]
) -> None:
    """Raise UserError at a new run's start for errors that would otherwise appear after the fit."""
    if not is_sharded(experiment.config):
        try_experiment(experiment, trainer.strategy.root_device)
    check_states(experiment.model, callbacks)
    check_model_loads(experiment)
    if experiment.config["checkpoint"] != "best":
        return
    every = experiment.config["trainer"]["val_check_interval"]
    if not len(experiment.data.splits["val"]) or every > trainer.max_steps:
        raise UserError(
            "checkpoint=best: this run has no validation; pass checkpoint=last, or set "
            "trainer.val_check_interval and data.val_size"
        )


def fit_model(fit: Fit, run: RunDirectory, experiment: Experiment, origin: Origin) -> None:
    """Fit the model and save its last checkpoint; if nothing is trained, only save it."""
    model, trainer = experiment.model, fit.trainer
    if is_fitted(experiment, origin):

        def has_stepped() -> bool:
            return trainer.global_step > origin.step + 1

        with (
            compile_networks(model, experiment.config),
            reraise_as_foreign_checkpoint(origin.start, has_stepped),
        ):
            trainer.fit(model, experiment.data, ckpt_path=origin.start)
        return
    checkpoint = origin.adopted
    if checkpoint is None:
        weights = {"state_dict": model.state_dict(), "callbacks": NO_AVERAGE, "global_step": 0}
        checkpoint = weights | {"triptych": fit.saver.record}
    if rank() == 0:
        save_checkpoint(checkpoint, run / "checkpoints" / LAST)
