"""`items.npz`: the test bound of each item, which the report pairs by seed and by item."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from triptych.runs.arrays import read_arrays

NAME = "items.npz"


@dataclass(frozen=True)
class Items:
    """Bound of each test item in the reported unit, (n,) float64, in the order of `index`, (n,) int64."""

    index: np.ndarray
    total: np.ndarray


def read_items(directory: Path, bound: float) -> Items | None:
    """The items of a run whose mean is its test `bound`; None where they are absent, broken or of another."""
    found = load_items(directory)
    if found is None or not math.isclose(found.total.mean(), bound, rel_tol=1e-5, abs_tol=1e-5):
        return None
    return found


def load_items(directory: Path) -> Items | None:
    """The items of a run, whatever its bound; None where they are absent or broken."""
    path = Path(directory) / NAME
    try:
        return _load(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=512)  # a report reads each file once for each pair
def _load(path: Path, _written: int) -> Items | None:
    found = read_arrays(path, ("index", "total"))
    if found is None:
        return None
    index, total = found["index"], found["total"].astype(np.float64)
    if len(index) < 2 or len(np.unique(index)) != len(index):
        return None
    if not np.isfinite(total).all():
        return None
    order = np.argsort(index)
    return Items(index[order], total[order])
