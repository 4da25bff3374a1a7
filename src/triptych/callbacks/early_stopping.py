"""Stop a fit whose validation bound no longer improves."""

import math
from typing import Annotated, Any

import pytorch_lightning as pl

from triptych.declare import Count, NonNegative, Unit, declared
from triptych.errors import UserError


@declared("callbacks.early_stopping")
class EarlyStopping(pl.Callback):
    """End the fit once ``patience`` validations in a row have not lowered ``monitor`` by ``min_delta``.

    Its state is in each checkpoint: a run that goes on counts on, and one that had stopped stays so.

    Args:
        monitor: a figure of validation; "val/bound" is the bound in the data's own unit.
    """

    def __init__(
        self,
        monitor: str = "val/bound",
        patience: Annotated[Count, Unit("validations")] = 5,
        min_delta: Annotated[NonNegative, Unit("the figure's unit")] = 0.0,
    ):
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.best = math.inf
        self.waited = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.enable_validation or not sum(trainer.num_val_batches or [0]):
            raise UserError("callbacks.early_stopping: there are no validation items to stop by; set null")
        self._decide(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        figures = trainer.callback_metrics
        if self.monitor not in figures:
            known = ", ".join(sorted(name for name in figures if name.startswith("val/")))
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor}: no such figure; must be one of {known}"
            )
        score = float(figures[self.monitor])
        if score < self.best - self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        self._decide(trainer)

    def _decide(self, trainer: pl.Trainer) -> None:
        if self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
