"""Stop a fit whose validation bound no longer improves."""

from typing import Annotated, Any

import pytorch_lightning as pl
import torch

from triptych.callbacks.metrics import item_metrics_callback
from triptych.declare import Count, NonNegative, Unit, declared
from triptych.errors import UserError


@declared("callbacks.early_stopping")
class EarlyStopping(pl.callbacks.EarlyStopping):
    """Stop a fit after ``patience`` validations in a row without an improvement of ``monitor``.

    An improvement is a decrease by more than ``min_delta``. The count of validations is stored in
    each checkpoint and continues after a resume. "val/bound" has the unit of the data's bound.
    """

    def __init__(
        self,
        monitor: str = "val/bound",
        patience: Annotated[Count, Unit("validations")] = 5,
        min_delta: Annotated[NonNegative, Unit("the figure's unit")] = 0.0,
    ):
        super().__init__(
            monitor, min_delta, patience, check_finite=False, check_on_train_epoch_end=False
        )

    @property
    def state_key(self) -> str:
        """The key of this state in checkpoints, which differs from that of Lightning's callback."""
        return type(self).__qualname__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "waited" not in state_dict:
            super().load_state_dict(state_dict)
            return
        # Checkpoints of an earlier version have these two entries.
        self.wait_count, self.best_score = state_dict["waited"], torch.tensor(state_dict["best"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        better = {"accuracy": "higher"} | item_metrics_callback(trainer).better
        if better.get(self.monitor.removeprefix("val/")) == "higher":
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor}: higher is better, but this "
                "callback needs a metric where lower is better; use val/bound"
            )
        # Checkpoints of an earlier version do not say that the run had stopped.
        trainer.should_stop |= self.wait_count >= self.patience
