"""An average of any length after the run, from the averages of a few that it stored on its way."""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.callbacks.ema_profiles import POWER, SNAPSHOTS, combination, exponent
from triptych.config.archive import go_through
from triptych.errors import UserError
from triptych.files import open_regular


def reconstruct(run: Path | None, step: int, weights: str, choices: Sequence[str]) -> dict[str, Tensor]:
    """The average at ``step`` that ``weights`` names, as sigma_rel_0.07: sum x_i stored_i (``combination``).

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
    stored = [(int(p.stem), name, s) for p in files for name, s in _read(p)["sigma_rel"].items()]
    factors = iter(combination([(at, s) for at, _, s in stored], step, sigma_rel).tolist())
    total: dict[str, Tensor] = {}
    for path in files:  # one file at a time in memory, summed in double: factors have both signs
        for average in _read(path)["averages"].values():
            factor = next(factors)
            for name, value in average.items():
                total[name] = total.get(name, 0) + factor * value.double()
    dtypes = {name: value.dtype for name, value in average.items()}
    return {name: value.to(dtypes[name]) for name, value in total.items()}


def _sigma_rel(weights: str) -> float | None:
    """The length in "sigma_rel_0.07", None if that is no name of one."""
    try:
        sigma_rel = float(weights.removeprefix(POWER)) if weights.startswith(POWER) else math.nan
        exponent(sigma_rel)
        return sigma_rel
    except ValueError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            go_through(file, str(path), "a snapshot")  # it may be a stranger's
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: truncated or not a snapshot of a run") from error
