"""Log the norms of a run's gradients and how often clipping changed them."""

import math
from typing import Any

import pytorch_lightning as pl
import torch


class Gradients(pl.Callback):
    """Log the gradient's total norm before clipping and the share of steps that were clipped.

    The share is that of all steps so far. A step whose norm is not finite counts as not clipped.
    ``by_value``: ``clip`` limits each element, not the norm.
    """

    def __init__(self, clip: float | None = None, by_value: bool = False):
        self.clip, self.by_value = clip, by_value
        self.clipped = torch.zeros((), dtype=torch.long)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set where mypy does not look
        steps = trainer.global_step + 1
        logged = steps % every == 0
        gradients = [p.grad for p in module.parameters() if p.grad is not None] if logged or self.clip else []
        if not gradients:
            return
        # The same as torch's get_total_norm, which on a CPU calls Python once for each gradient.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.clip:
            most = torch.stack(torch._foreach_norm(gradients, math.inf)).max() if self.by_value else norm
            self.clipped = self.clipped.to(norm.device) + (norm.isfinite() & (most > self.clip))
        if logged:
            module.log("train/grad_norm", norm, on_step=True, on_epoch=False)
            if self.clip:
                module.log("train/clipped", self.clipped / steps, on_step=True, on_epoch=False)

    def state_dict(self) -> dict[str, Any]:
        return {"clipped": self.clipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clipped = state_dict["clipped"].clone()
