"""Checkpoints: plain data, written atomically, loaded without executing code."""

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from triptych.callbacks.ema_profiles import POWER, SNAPSHOTS, combination, exponent
from triptych.config.archive import go_through
from triptych.config.keys import find_key
from triptych.declare import literal_values
from triptych.errors import ForeignCheckpoint, UserError
from triptych.files import open_regular
from triptych.run.directory import RunDirectory, write_atomic
from triptych.run.leakage import log_line
from triptych.run.untrusted import open_checkpoint

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save Lightning's checkpoints atomically: a kill leaves the old file or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path, key: str = "ckpt") -> dict[str, Any]:
    """Load a checkpoint as plain data on the CPU.

    Raises:
        UserError: as ``open_checkpoint``.
    """
    try:
        with open_checkpoint(path, key) as (file, record):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"{key}={path}: truncated or not a checkpoint; pass a checkpoint of a run") from error
    checkpoint["triptych"]["config"] = record["triptych"]["config"]
    return checkpoint


def reported_checkpoint(run: RunDirectory, which: str) -> Path:
    """Return the path of the reported checkpoint: "last", or "best" by the validation bound if any."""
    best = run / "checkpoints" / BEST
    return best if which == "best" and best.exists() else run / "checkpoints" / LAST


def newest_readable(paths: list[Path]) -> Path | None:
    """Return the readable checkpoint with the highest step; on a tie, "last".

    Its own step decides, not its file's time, which a copy or a clock changes. One that is damaged, or
    another run's, gives way to the one before, and a line says so.

    Raises:
        ForeignCheckpoint: all that can be read are another run's; a start over would overwrite them.
    """
    known, others = [], []
    for path in paths:
        try:
            with open_checkpoint(path) as (_, record):
                known.append((int(record["global_step"]), path.name == LAST, path))
        except (UserError, OSError, LookupError, ValueError, TypeError) as error:
            log_line(None, f"passed over: {error}")
            others += [error] if isinstance(error, ForeignCheckpoint) else []
    if others and not known:
        raise others[0]
    return max(known)[2] if known else None


def averages(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's averages by name, such as sigma_rel_0.1; the reported one first."""
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("EMA"):
            return {state.get("name", "ema"): state["average"]} | state.get("others", {})
    return {}


def load_weights(
    module: torch.nn.Module, checkpoint: dict[str, Any], weights: str, run: Path | None = None
) -> None:
    """Load the raw or averaged weights of a checkpoint into ``module``.

    Args:
        weights: "ema", the reported average; "raw"; "chosen", what a run with weights=chosen chose; or an
            average by its name. One that was not kept, sigma_rel_0.07, is made from the snapshots of ``run``.

    Raises:
        UserError: ``weights`` is none of these, or the checkpoint has no such average.
    """
    tensors = state_dict_of(checkpoint, weights, run)
    try:
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"weights={weights}: not those of the checkpoint's configuration ({line})") from error


def state_dict_of(checkpoint: dict[str, Any], weights: str, run: Path | None = None) -> dict[str, Tensor]:
    """Return the ``state_dict`` that ``load_weights`` loads."""
    tensors = dict(checkpoint["state_dict"])
    stored = averages(checkpoint)
    if weights == "chosen":
        weights = checkpoint.get("triptych", {}).get("chosen")
        if not weights:
            raise UserError("weights=chosen: the run has not chosen among its averages; pass ema or raw")
    if weights == "ema":
        if not stored:
            raise UserError("weights=ema: this checkpoint holds no average; pass weights=raw")
        tensors |= next(iter(stored.values()))
    elif weights in stored:
        tensors |= stored[weights]
    elif weights != "raw":
        names = [*literal_values(find_key("weights").kind), *stored]
        tensors |= _reconstruct(run, checkpoint.get("global_step", 0), weights, names)
    return tensors


def reported(checkpoint: dict[str, Any]) -> str:
    """Return the name of the weights that a checkpoint's run reports: "raw", or an average."""
    stored, weights = averages(checkpoint), checkpoint["triptych"]["config"].get("weights")
    if weights == "raw" or not stored:
        return "raw"
    chosen = checkpoint["triptych"].get("chosen")
    return chosen if weights == "chosen" and chosen in stored else next(iter(stored))


def _reconstruct(run: Path | None, step: int, weights: str, choices: Sequence[str]) -> dict[str, Tensor]:
    """Reconstruct the average that ``weights`` names, such as sigma_rel_0.07, from snapshots up to ``step``.

    Raises:
        UserError: no such name, no such length, or nothing was stored up to ``step``.
    """
    sigma_rel = _sigma_rel(weights)
    if sigma_rel is None:
        raise UserError(f"weights={weights}: must be one of {', '.join(choices)}")
    files = [p for p in sorted((run / SNAPSHOTS).glob("*.pt")) if int(p.stem) <= step] if run else []
    if not files:
        raise UserError(
            f"weights={weights}: not kept, and no snapshots to make it from (callbacks.ema.snapshots=20 "
            f"stores them); choose one of {', '.join(choices)}"
        )
    stored = [
        (int(p.stem), name, s)
        for p in files
        for name, s in read_tensors(p, "a snapshot")["sigma_rel"].items()
    ]
    factors = iter(combination([(at, s) for at, _, s in stored], step, sigma_rel).tolist())
    total: dict[str, Tensor] = {}
    for path in files:  # one file at a time in memory, summed in double: factors have both signs
        for average in read_tensors(path, "a snapshot")["averages"].values():
            factor = next(factors)
            for name, value in average.items():
                total[name] = total.get(name, 0) + factor * value.double()
    dtypes = {name: value.dtype for name, value in average.items()}
    return {name: value.to(dtypes[name]) for name, value in total.items()}


def _sigma_rel(weights: str) -> float | None:
    try:
        sigma_rel = float(weights.removeprefix(POWER)) if weights.startswith(POWER) else math.nan
        exponent(sigma_rel)
        return sigma_rel
    except ValueError:
        return None


def read_tensors(path: Path, kind: str) -> dict[str, Any]:
    """Load a file of tensors and plain data; UserError for any other content."""
    try:
        with open_regular(path) as file:
            go_through(file, str(path), kind)  # it may be a stranger's
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: truncated or not {kind} of a run") from error
