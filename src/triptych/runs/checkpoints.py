"""Checkpoints: plain data, written whole, read without running anybody's code."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from triptych.errors import UserError
from triptych.runs.directory import write_atomic

WEIGHTS = ("ema", "raw")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, under a temporary name first: a kill leaves the old file or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours as plain data on the CPU.

    Raises:
        UserError: missing, not readable (truncated), or not ours (foreign, or holding code).
    """
    if not path.is_file():
        raise UserError(
            f"ckpt={path}: no such file; a checkpoint of a run, as in .../checkpoints/last.ckpt, is accepted"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = (
            "it holds more than plain data and was not loaded"
            if zipfile.is_zipfile(path)
            else "not a checkpoint"
        )
        raise UserError(f"ckpt={path}: {reason}; a checkpoint of a run is accepted") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"ckpt={path}: truncated or not a checkpoint; a checkpoint of a run is accepted"
        ) from error
    if not isinstance(checkpoint, dict) or "triptych" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"ckpt={path}: not written by triptych; a checkpoint of a run is accepted")
    return checkpoint


def newest_readable(paths: list[Path]) -> Path | None:
    """The first of ``paths`` that can be read: a truncated newest file falls back to the one before."""
    for path in paths:
        try:
            read_checkpoint(path)
            return path
        except UserError:
            continue
    return None


def load_weights(module: torch.nn.Module, checkpoint: dict[str, Any], weights: str) -> None:
    """Put the raw or the averaged weights of a checkpoint into ``module``.

    Raises:
        UserError: ``weights`` is neither "ema" nor "raw", or the checkpoint has no average.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights}: one of {', '.join(WEIGHTS)} is accepted")
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        averages = [
            s["average"] for name, s in checkpoint.get("callbacks", {}).items() if name.startswith("EMA")
        ]
        if not averages:
            raise UserError("weights=ema: this checkpoint holds no average; weights=raw is accepted")
        state |= averages[0]
    module.load_state_dict(state)
