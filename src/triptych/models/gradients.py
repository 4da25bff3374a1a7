"""Clip a run's gradient, and log its norm and how often it was clipped."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_


class Gradients(pl.Callback):
    """Log the gradient's total norm before clipping, and the share of steps that were clipped.

    The share is over all steps so far. A step whose norm is not finite does not count as clipped.
    ``clip``: the limit of the norm or, with ``by_value``, of each element; None: no clipping.
    """

    def __init__(self, clip: float | None = None, by_value: bool = False):
        self.clip, self.by_value = clip or 0.0, by_value
        self.clipped = torch.zeros((), dtype=torch.long)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.clipped = self.clipped.to(module.device)

    def clip_by_norm(self, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> bool:
        """Log the norm and clip by it; return False if clipping is left to Lightning.

        The model calls it, because Lightning calls no callback between the last hook that may
        change a gradient and its clipping.
        """
        trainer: Any = module.trainer
        steps = trainer.global_step + 1
        logged = steps % trainer.log_every_n_steps == 0
        if not logged and not self.clip:
            return False
        weights: list[Any] = list(trainer.precision_plugin.main_params(optimizer))
        gradients = [p.grad for p in weights if p.grad is not None]
        # Equal to torch's get_total_norm, which is slow on a CPU with many tensors.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.clip:
            self._count_clipped(gradients, norm)
        if logged:
            module.log("train/grad_norm", norm, on_step=True, on_epoch=False)
        if logged and self.clip:
            module.log("train/clipped", self.clipped / steps, on_step=True, on_epoch=False)
        # With float16, Lightning refuses an optimizer that still holds scaled gradients.
        if not self.clip or self.by_value or trainer.scaler is not None:
            return False
        clip_grads_with_norm_(weights, self.clip, norm)
        return True

    def _count_clipped(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Count this step if its norm (``by_value``: its largest element) exceeds the limit."""
        size = norm
        if self.by_value:
            size = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
        self.clipped = self.clipped + (norm.isfinite() & (size > self.clip))

    def state_dict(self) -> dict[str, Any]:
        return {"clipped": self.clipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clipped = state_dict["clipped"].clone()
