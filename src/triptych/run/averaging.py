"""Choose the weights that a run reports, and validate the other averages."""

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from triptych.callbacks.ema import EMA
from triptych.errors import UserError
from triptych.run.account import account_split
from triptych.run.checkpoints import (
    averages,
    load_weights,
    read_checkpoint,
    reported_checkpoint,
    save_checkpoint,
)
from triptych.run.directory import RunDirectory
from triptych.run.experiment import Experiment
from triptych.run.initialization import Origin


def check_averaging(config: dict[str, Any], callbacks: list[pl.Callback], validated: bool) -> None:
    """Check that validation, and so "best", uses the weights that the run reports.

    Raises:
        UserError: ``weights`` is none; an average is asked for and none is kept; weights=chosen with
            checkpoint=best, which is decided before there is a choice, or without validation items.
    """
    weights, averagers = config["weights"], [c for c in callbacks if isinstance(c, EMA)]
    if weights != "raw" and not averagers and not config.get("trained"):
        raise UserError(f"weights={weights}: callbacks.ema=null keeps no average; pass weights=raw")
    if weights == "chosen" and config["checkpoint"] == "best":
        raise UserError(
            "weights=chosen: the best moment is decided by one average, the choice made at the end; "
            "pass checkpoint=last or weights=ema"
        )
    if weights == "chosen" and averagers and sum(len(one.lengths) for one in averagers) < 2:
        raise UserError("weights=chosen: one average is kept; add callbacks.ema.others=[0.1], or weights=ema")
    if weights == "chosen" and not validated:
        raise UserError("weights=chosen: there are no validation items to choose by; pass weights=ema")
    for average in averagers:
        average.validates = weights != "raw"


class Reported(NamedTuple):
    """The reported weights: their checkpoint, its step, and figures of the other averages."""

    path: Path
    step: int
    others: dict[str, Any]


def choose_weights(
    run: RunDirectory, trainer: pl.Trainer, experiment: Experiment, origin: Origin
) -> Reported:
    """Load the weights that the run reports into its model.

    ``others``: {"averaging": {"reported", "val"}}, which average they are, and the validation figures of the
    other weights. With weights=chosen the average of the lowest validation bound is chosen, and noted in the
    checkpoint. The test set is not looked at. Empty where there is nothing to compare or to validate on, and
    where the model is another run's, who has chosen.
    """
    path = reported_checkpoint(run, experiment.config["checkpoint"])
    checkpoint = origin.adopted or read_checkpoint(path)
    model, data = experiment.model, experiment.data
    weights, stored = experiment.config["weights"], averages(checkpoint)
    reported = {
        "raw": "raw",
        "ema": next(iter(stored), None),
        "chosen": checkpoint["triptych"].get("chosen"),
    }[weights]
    figures = {}
    if not origin.adopted and any(stored.values()) and len(data.splits["val"]):
        for name in ("raw", *stored):
            if name != reported:  # that one is accounted with the other splits
                load_weights(model, checkpoint, name)
                figures[name] = account_split(trainer, model, data, "val", of=name).figures
    anew = bool(figures) and reported is None
    if anew:
        unit = model.accounting.unit
        reported = min(stored, key=lambda name: figures[name][unit]["mean"])
        checkpoint["triptych"]["chosen"] = reported
        del figures[reported]
    load_weights(model, checkpoint, weights)
    if anew and trainer.is_global_zero:
        save_checkpoint(checkpoint, path)
    others = {"averaging": {"reported": reported, "val": figures}} if figures or anew else {}
    return Reported(path, checkpoint["global_step"], others)
