"""Compute user-supplied metrics of items whenever the bound is evaluated: validation and test."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torchmetrics import Metric

from triptych.config.build import build
from triptych.config.check import check_metric_names
from triptych.config.own_code import is_user_code, reraise_as_user_error
from triptych.data.batch import Batch
from triptych.diffusion.draws import Stream, hash_seed
from triptych.errors import UserError
from triptych.models.accounting import Accounting
from triptych.models.base import BoundModel
from triptych.models.metric import OfSamples

# {higher_is_better of torchmetrics: the better direction, as it is recorded}
BETTER: dict[Any, str] = {True: "higher", False: "lower"}


class Metrics(pl.Callback):
    """Update each item metric with every batch that is evaluated, and log its value.

    The random numbers of a metric follow from the seed and the batch's index and leave torch's
    generator unchanged, so a run with metrics trains like one without.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        check_metric_names(metrics)
        self.metrics = dict(metrics)
        self.figures: dict[str, dict[str, Any]] = {}

    @property
    def better(self) -> dict[str, str]:
        """The better direction of each metric: "higher", "lower", or "" if it declares none."""
        return {name: better_direction(metric) for name, metric in self.metrics.items()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for name, metric in self.metrics.items():
            try:
                getattr(metric, "check", lambda model: None)(pl_module)
            except UserError as error:
                raise UserError(f"metrics.{name}: {error}") from None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        seeds = [pl_module.seed, Stream.METRICS, batch_idx]
        if pl_module.global_rank:  # the processes need different random numbers
            seeds.append(pl_module.global_rank)
        for name, metric in self.metrics.items():
            with torch.random.fork_rng(devices):
                torch.manual_seed(hash_seed(*seeds))
                _update_metric(name, metric, pl_module, batch)

    on_test_batch_end = on_validation_batch_end

    def try_user_metrics(self, model: BoundModel, batch: Batch) -> None:
        """Update each metric once with ``batch`` and reset it, if any metric is user-supplied.

        Raises UserError if one fails.
        """
        if not any(map(is_user_code, self.metrics.values())):
            return
        model.before_accounting()  # as Lightning does before metrics are updated
        for name, metric in self.metrics.items():
            _update_metric(name, metric.to(model.device), model, batch)
            metric.reset()

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        loader: Any = trainer.val_dataloaders  # our own loader, which has ``items``
        self._compute(loader.items)
        module.log_dict(
            {f"val/{name}": logged_mean(figure) for name, figure in self.figures.items()}
        )

    def on_test_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._compute(module.test_loader.items)

    def _compute(self, items: int) -> None:
        """Compute all metrics of a split of ``items`` items, as ``figures``."""
        self.figures = {
            name: _item_metric(name, m.compute(), items) for name, m in self.metrics.items()
        }


def better_direction(metric: Metric) -> str:
    """Return which direction of a metric is better: "higher", "lower", or "" if not declared."""
    return BETTER.get(getattr(metric, "higher_is_better", None), "")


def logged_mean(figure: dict[str, Any]) -> float:
    """Return the mean of a metric for loggers; NaN if no item had a value."""
    return math.nan if figure["mean"] is None else float(figure["mean"])


def build_user_metrics(config: Mapping[str, Any]) -> dict[str, Any]:
    """Build the user's metrics, of items and of samples, that a configuration describes.

    Raises UserError if ``higher_is_better`` of a metric is not True, False or None.
    """
    nodes = (config.get("metrics") or {}).items()
    metrics = {name: build(node, f"metrics.{name}") for name, node in nodes if node}
    for name, metric in metrics.items():
        higher = getattr(metric, "higher_is_better", None)
        if not isinstance(higher, bool | None):
            raise UserError(
                f"metrics.{name}: higher_is_better={higher!r}; must be True, False or None"
            )
    return metrics


def build_metrics_callback(config: dict[str, Any]) -> list[Metrics]:
    """Return [callback of the item metrics in a configuration], or [] if it has none."""
    item_metrics = {
        n: metric
        for n, metric in build_user_metrics(config).items()
        if not isinstance(metric, OfSamples)
    }
    return [Metrics(item_metrics)] if item_metrics else []


def item_metrics_callback(trainer: pl.Trainer) -> Metrics:
    """Return the trainer's ``Metrics`` callback; if it has none, a callback without metrics."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    return next((callback for callback in callbacks if isinstance(callback, Metrics)), Metrics({}))


def _update_metric(name: str, metric: Metric, model: BoundModel, batch: Batch) -> None:
    """Update one metric with a copy of a batch, in evaluation mode; UserError if this fails."""
    model.eval()  # another metric may have changed the mode
    # Pause the accounting of every bound, as a cascade has one ``Accounting`` for each stage.
    Accounting.paused = True
    try:
        with reraise_as_user_error(f"metrics.{name}"):
            metric.update(model, copy.deepcopy(batch))
    finally:
        Accounting.paused = False


def _item_metric(name: str, value: Any, items: int) -> dict[str, Any]:
    """Convert the value that a metric computed to {"mean", "stderr", "n"}; UserError if invalid."""
    try:
        if isinstance(value, Mapping):
            return {key: value[key] for key in ("mean", "stderr", "n")}
        return {"mean": float(value), "stderr": None, "n": items}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"metrics.{name}: compute() returned {str(value)[:100]}; must be a number, or a dict "
            "of mean, stderr and n"
        ) from error
