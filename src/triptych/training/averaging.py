"""Which weights of a run are reported, and what the validation bound says of the others that it kept."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from triptych.callbacks.ema import EMA
from triptych.data.base import DataModule
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.runs.checkpoints import averages, load_weights
from triptych.runs.directory import write_atomic
from triptych.training.account import account_split


def check_averaging(config: dict, callbacks: list[pl.Callback], validated: bool) -> None:
    """Validation, and with it "best", looks at the weights that the run reports.

    Raises:
        UserError: ``weights`` is none; an average is asked for and none is kept; weights=chosen with
            checkpoint=best, which is decided before there is a choice, or without validation items.
    """
    weights, kept = config["weights"], [c for c in callbacks if isinstance(c, EMA)]
    if weights != "raw" and not kept and not config.get("trained"):
        raise UserError(f"weights={weights}: callbacks.ema=null keeps no average; weights=raw is accepted")
    if weights == "chosen" and config["checkpoint"] == "best":
        raise UserError(
            "weights=chosen: the best moment is decided by one average, the choice made at the end; "
            "checkpoint=last, or weights=ema, is accepted"
        )
    if weights == "chosen" and not validated:
        raise UserError("weights=chosen: there are no validation items to choose by; weights=ema is accepted")
    for average in kept:
        average.validates = weights != "raw"


def compare_averages(
    trainer: pl.Trainer, model: BoundModel, data: DataModule, checkpoint: dict[str, Any], path: Path
) -> dict[str, Any]:
    """{"averaging": {"reported", "val"}}: the weights reported, and the validation figures of the others.

    With weights=chosen the average of the lowest validation bound is chosen, and noted in the checkpoint in
    memory and at ``path``. The test set is not looked at. Empty where there is nothing to compare or to
    validate on.
    """
    asked, kept = model.config["weights"], averages(checkpoint)
    noted = checkpoint["triptych"].get("chosen")
    if not any(kept.values()) or not len(data.splits["val"]):
        return {}
    reported = {"raw": "raw", "ema": next(iter(kept)), "chosen": noted}[asked]
    found = {}
    for name in ("raw", *kept):
        if name != reported:  # that one is accounted with the other splits
            load_weights(model, checkpoint, name)
            found[name] = account_split(trainer, model, data, "val", of=name)
    if reported is None:
        unit = model.accounting.unit
        reported = min(kept, key=lambda name: found[name][unit]["mean"])
        checkpoint["triptych"]["chosen"] = reported
        del found[reported]
        if trainer.is_global_zero:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            write_atomic(path, buffer.getvalue())
    return {"averaging": {"reported": reported, "val": found}}
