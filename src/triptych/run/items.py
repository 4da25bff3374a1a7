"""Read ``items.npz``, the bound of each test item, for paired comparisons of runs.

``read_arrays`` also serves for other untrusted .npz files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ITEMS = "items.npz"
KINDS = "fiu"  # numpy's codes of the accepted types: floats and integers


@dataclass(frozen=True)
class Items:
    """The bound of each test item of a run, in the reported unit.

    `total` is (n,) float64, in the order of the items' `index`, (n,) int64. `group` (n,) is the
    number of each item's group; None: items are taken as independent.
    """

    index: np.ndarray
    total: np.ndarray
    group: np.ndarray | None = None


def read_items(directory: Path) -> Items | None:
    """Read a run's items; None if they are absent or damaged."""
    path = f"{directory}/{ITEMS}"
    try:
        return _load(path, os.stat(path).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)  # a report reads each file once for each pair; 160 kB each at 10,000 items
def _load(path: str, _written: int) -> Items | None:
    """Read and check an items file; `_written`, its time of change, keeps the cache current."""
    import numpy as np  # Imported late, so that errors on the command line appear fast.

    names = ("index", "total")
    arrays = read_arrays(path, (*names, "group")) or read_arrays(path, names)
    if arrays is None:
        return None
    order = np.argsort(arrays["index"])
    index, total = arrays["index"][order], arrays["total"].astype(np.float64)[order]
    if len(index) < 2 or not (index[1:] > index[:-1]).all() or not np.isfinite(total).all():
        return None
    if "group" not in arrays:
        return Items(index, total)
    return Items(index, total, arrays["group"][order])


def group_values(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Convert values of items (..., n) to one value for each of G groups, (..., G).

    Their mean is the mean m of the items, and their spread that of the delete-one-group jackknife,
    which allows for any dependence within a group and for groups of different sizes n_g:

        v_g = m + u_g - mean(u),   u_g = (G - 1) (m - m_without_g)
                                       = (G - 1) sum_g (x - m) / (n - n_g)

    (Bell & McCaffrey 2002; MacKinnon, Nielsen & Webb 2023: CV3J). With equal sizes v_g is the mean
    of the group (Liang & Zeger 1986). At least two groups are needed; ``groups`` is (n,).
    """
    import numpy as np

    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    mean = values.mean(-1, keepdims=True)
    in_order = (values - mean)[..., np.argsort(place, kind="stable")]
    sums = np.add.reduceat(in_order, starts, axis=-1)
    shifts = (len(sizes) - 1) * sums / (len(groups) - sizes)
    return mean + shifts - shifts.mean(-1, keepdims=True)


def effective_number(groups: np.ndarray) -> float:
    """Return how many groups of equal size would be as informative as these of unequal size.

    This is n^2 / sum of n_g^2 for n items in groups of n_g (Kish 1965).
    """
    import numpy as np

    _, sizes = np.unique(groups, return_counts=True)
    return float(len(groups) ** 2 / np.square(sizes, dtype=float).sum())


def read_arrays(
    file: str | Path, names: Sequence[str], square_name: str = ""
) -> dict[str, np.ndarray] | None:
    """Read numeric arrays (n,) of equal length from an untrusted .npz; None if it is malformed.

    The array called ``square_name`` must have shape (n, n). Nothing is unpickled.
    """
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in names}
    except Exception:  # zipfile, zlib and numpy raise a dozen exception types
        return None
    sizes = {size for array in arrays.values() for size in array.shape}
    numbers = all(array.dtype.kind in KINDS for array in arrays.values())
    shaped = all(array.ndim == 1 + (name == square_name) for name, array in arrays.items())
    if not numbers or not shaped or len(sizes) != 1:
        return None
    return arrays
