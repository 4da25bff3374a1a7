"""The norms of a run's gradients, and how often clipping changed them."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

PER_OCTAVE = 16  # bins; a quantile is right to 2^(1/32), 2.2%
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}
LOWEST, HIGHEST = -60, 60  # octaves: norms from 2^-60 to 2^60, beyond them the outermost bins count


class Gradients(pl.Callback):
    """Count the total norm |g| of every step's gradient, before it is clipped, in bins of log2 |g|.

    Args:
        clip: norm at which the trainer clips; None: it does not.
    """

    def __init__(self, clip: float | None = None):
        self.clip = clip
        self.counts = torch.zeros((HIGHEST - LOWEST) * PER_OCTAVE, dtype=torch.long)
        self.clipped = torch.zeros((), dtype=torch.long)
        self.largest = torch.zeros(())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            return
        # torch's get_total_norm, which on a CPU calls Python once for each of them
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._count(norm)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set where mypy does not look
        if (trainer.global_step + 1) % every == 0:
            module.log("train/grad_norm", norm, on_step=True, on_epoch=False)
            if self.clip:
                module.log("train/clipped", self.clipped / self.counts.sum(), on_step=True, on_epoch=False)

    def _count(self, norm: Tensor) -> None:
        if self.counts.device != norm.device:
            self.counts = self.counts.to(norm.device)
            self.clipped, self.largest = self.clipped.to(norm.device), self.largest.to(norm.device)
        finite = norm.isfinite()
        bin_ = ((norm.float().log2() - LOWEST) * PER_OCTAVE).nan_to_num(0, 0, 0).floor().long()
        self.counts.index_add_(0, bin_.clamp(0, len(self.counts) - 1)[None], finite.long()[None])
        self.largest = torch.maximum(self.largest, norm.float().nan_to_num(0, 0, 0))
        if self.clip:
            self.clipped += finite & (norm > self.clip)

    def figures(self) -> dict[str, Any] | None:
        """Return {"norm": {"p10", "median", "p90", "max"}, "clipped": share or None}; None before a step."""
        counts = self.counts.cpu()
        steps = int(counts.sum())
        if not steps:
            return None
        below = counts.cumsum(0) / steps
        bins = {name: int((below < share).sum()) for name, share in QUANTILES.items()}
        middles = {name: math.exp2(LOWEST + (bin_ + 0.5) / PER_OCTAVE) for name, bin_ in bins.items()}
        norm = {name: float(f"{middle:.3g}") for name, middle in middles.items()}
        clipped = float(self.clipped) / steps if self.clip else None
        return {"norm": norm | {"max": float(self.largest)}, "clipped": clipped}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "clipped": self.clipped, "largest": self.largest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts, self.clipped = state_dict["counts"].clone(), state_dict["clipped"].clone()
        self.largest = state_dict["largest"].clone()
