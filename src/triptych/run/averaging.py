"""The weights of a checkpoint: raw, stored averages, and averages reconstructed after the run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.callbacks.ema import POWER, SNAPSHOTS, combination_factors, power_exponent
from triptych.config.keys import find_key
from triptych.declare import literal_values
from triptych.errors import Diverged, UserError
from triptych.records import Checkpoint
from triptych.run.checkpoints import read_tensors
from triptych.run.parsing import error_line
from triptych.run.untrusted import is_ema_state

Average = dict[str, Tensor]  # averaged parameters of the network, by name


def averages(checkpoint: Checkpoint) -> dict[str, Average]:
    """Return {name: average} of a checkpoint, such as sigma_rel_0.1; the reported one is first."""
    for state in checkpoint["callbacks"].values():
        if is_ema_state(state):
            return {state["name"]: state["average"]} | state["others"]
    return {}


def load_weights(
    module: torch.nn.Module, checkpoint: Checkpoint, weights: str, run: Path | None = None
) -> None:
    """Load the raw or averaged weights of a checkpoint into ``module``.

    Args:
        module: the model, changed in place.
        checkpoint: the content of a checkpoint.
        weights: "raw"; "ema" for the reported average; "chosen" for the average that a run with
            weights=chosen selected; or the name of an average. An average that was not stored, for
            example sigma_rel_0.07, is reconstructed from the snapshots of ``run``.
        run: the run's directory.

    Raises:
        UserError: the checkpoint lacks these weights, or they do not match the model.
        Diverged: a weight is not finite, for example in a file that this project did not write.
    """
    average = find_average(checkpoint, weights, run)
    if weights != "raw":
        check_average(module, average, weights)
    try:
        module.load_state_dict(checkpoint["state_dict"] | average)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"weights={weights}: tensors do not fit the checkpoint's configuration "
            f"({error_line(error)}); restore the checkpoint"
        ) from error
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise Diverged("a weight", checkpoint["global_step"])


def check_average(module: torch.nn.Module, average: Average, weights: str) -> None:
    """Raise UserError if an average has no value for one of the model's trained parameters."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    missing = sorted(trained - average.keys())
    if missing:
        raise UserError(
            f"weights={weights}: the average lacks {missing[0]}; restore the checkpoint, or pass "
            "weights=raw"
        )


def find_average(checkpoint: Checkpoint, weights: str, run: Path | None = None) -> Average:
    """Return the average that ``weights`` names, {parameter: tensor}; {} for the raw weights."""
    stored = averages(checkpoint)
    if weights == "chosen":
        weights = checkpoint["triptych"].get("chosen", "")
        if not weights:
            raise UserError("weights=chosen: the run has not chosen an average; pass ema or raw")
    if weights == "raw":
        return {}
    if weights == "ema":
        if not stored:
            raise UserError("weights=ema: this checkpoint holds no average; pass weights=raw")
        return next(iter(stored.values()))
    if weights in stored:
        return stored[weights]
    return _reconstruct(checkpoint, weights, run)


def reported_weights(checkpoint: Checkpoint) -> str:
    """Return the name of the weights that a run reports: "raw" or the name of an average."""
    stored, weights = averages(checkpoint), checkpoint["triptych"]["config"].get("weights")
    if weights == "raw" or not stored:
        return "raw"
    chosen = checkpoint["triptych"].get("chosen")
    if weights == "chosen" and chosen in stored:
        return str(chosen)
    return next(iter(stored))


def _reconstruct(checkpoint: Checkpoint, weights: str, run: Path | None) -> Average:
    """Reconstruct the average with the length in the name ``weights`` from stored averages."""
    step, stored = checkpoint["global_step"], averages(checkpoint)
    choices = ", ".join([*literal_values(find_key("weights").kind), *stored])
    sigma_rel = _parse_sigma_rel(weights)
    if sigma_rel is None:
        raise UserError(f"weights={weights}: must be one of {choices}")
    reads = _snapshot_readers(run, step)
    if not reads:
        raise UserError(
            f"weights={weights}: not stored, and it cannot be computed without "
            f"callbacks.ema.snapshots in training; choose one of {choices}"
        )
    if step not in reads:  # The checkpoint's own averages serve as the last snapshot.
        lengths = reads[max(reads)]()["sigma_rel"]
        reads[step] = lambda: {
            "sigma_rel": lengths,
            "averages": {name: stored[name] for name in lengths},
        }
    known = []
    for snapshot_step, read in reads.items():
        known += [(snapshot_step, length) for length in read()["sigma_rel"].values()]
    factors = iter(combination_factors(known, step, sigma_rel).tolist())
    total: Average = {}
    average: Average = {}
    for read in reads.values():  # Keep only one file in memory at a time.
        for average in read()["averages"].values():
            factor = next(factors)
            for name, value in average.items():  # Sum in float64: factors of both signs cancel.
                total[name] = total.get(name, 0) + factor * value.double()
    return {name: value.to(average[name].dtype) for name, value in total.items()}


def _parse_sigma_rel(weights: str) -> float | None:
    """Return the length (sigma_rel) in an average's name, such as .07 for "sigma_rel_0.07".

    Return None for any other name.
    """
    if not weights.startswith(POWER):
        return None
    try:
        sigma_rel = float(weights.removeprefix(POWER))
        power_exponent(sigma_rel)
    except ValueError:
        return None
    return sigma_rel


def _snapshot_readers(run: Path | None, step: int) -> dict[int, Callable[[], Any]]:
    """Return {step: function that reads the snapshot} for a run's snapshots up to ``step``."""
    if run is None:
        return {}
    paths = [path for path in sorted((run / SNAPSHOTS).glob("*.pt")) if int(path.stem) <= step]
    return {int(path.stem): partial(read_tensors, path, "a snapshot") for path in paths}
