"""An exponential moving average of the network's parameters, validated in their place."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class EMA(pl.Callback):
    """average <- average + (1 - d_n) (weights - average), d_n = min(decay, (1 + n) / (10 + n)).

    The rising decay is the warm-up: early averages are of recent weights, none ever holds the initial ones.
    Parameters are averaged, buffers are not. Validation sees the average; a checkpoint holds the raw weights
    in its ``state_dict`` and the average with its counter in this callback's state.

    Raises:
        ValueError: ``decay`` outside [0, 1).
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: a number in [0, 1) is accepted")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._raw: list[Tensor] | None = None
        self._seen = 0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        names = _parameters(module)
        if self.average:  # loaded from a checkpoint
            self.average = {n: self.average[n].to(p) for n, p in names.items()}
        else:
            self.average = {n: p.detach().clone() for n, p in names.items()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._seen = trainer.global_step  # not in on_fit_start, before a checkpoint's step is known

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._seen:  # a gradient was accumulated, no step taken
            return
        self._seen = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(_parameters(module).values()), 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.average:
            parameters = _parameters(module)
            self._raw = [p.detach().clone() for p in parameters.values()]
            _copy(parameters, list(self.average.values()))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore(module)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._restore(module)

    def _restore(self, module: pl.LightningModule) -> None:
        if self._raw is not None:
            _copy(_parameters(module), self._raw)
            self._raw = None

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.updates = dict(state_dict["average"]), state_dict["updates"]


def _parameters(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(parameters: dict[str, Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(list(parameters.values()), values)
