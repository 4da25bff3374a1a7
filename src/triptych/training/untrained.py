"""A model without parameters: there is nothing to fit, and its checkpoint holds its configuration."""

import io

import torch

from triptych.models.base import BoundModel
from triptych.runs.directory import RunDirectory, write_atomic


def trainable(model: BoundModel) -> bool:
    """Whether there is anything to fit."""
    return any(p.requires_grad for p in model.parameters())


def keep_untrained(run: RunDirectory, model: BoundModel) -> None:
    """``checkpoints/last.ckpt``, from which the doors reopen the model; its average is of no weights."""
    checkpoint = {
        "state_dict": model.state_dict(),
        "callbacks": {"EMA": {"name": "ema", "average": {}, "others": {}}},
        "global_step": 0,
        "triptych": {"schema": 1, "config": model.config, "data": model.seen},
    }
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(run / "checkpoints" / "last.ckpt", buffer.getvalue())
