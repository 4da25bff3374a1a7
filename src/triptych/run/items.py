"""Read and write ``items.npz``: the bound of each item, for paired comparisons."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.files import limit, open_regular
from triptych.run.directory import write_atomic

if TYPE_CHECKING:
    import numpy as np

    from triptych.models.accounting import Account

NAME = "items.npz"
COLUMNS = ("total", "prior", "reconstruction", "diffusion", "draw_variance")
HEADER = 4096  # bytes of an array's own description, at most
KINDS = "fiu"  # floats and whole numbers


@dataclass(frozen=True)
class Items:
    """Bound of each test item in the reported unit, (n,) float64, in the order of `index`, (n,) int64."""

    index: np.ndarray
    total: np.ndarray

    @cached_property
    def mean(self) -> float:
        return float(self.total.mean())


def write_items(path: Path, account: Account) -> bool:
    """Write each item's bound: ``index`` (n,) int64, rising, ``COLUMNS`` (n,) float64; return False if none.

    In the reported unit, means over draws; ``draw_variance`` is of that mean, NaN for one draw.
    """
    if account.per_item is None:
        return False
    import numpy as np

    index, rows = account.per_item
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(COLUMNS, rows.numpy().T.copy(), strict=True))
    np.savez(buffer, index=index.numpy().astype(np.int64), **arrays)
    write_atomic(path, buffer.getvalue())
    return True


def read_items(directory: Path, bound: float) -> Items | None:
    """Read the items if their mean is the run's test `bound`; None if absent, damaged or of another run."""
    items = load_items(directory)
    if items is None or not math.isclose(items.mean, bound, rel_tol=1e-5, abs_tol=1e-5):
        return None
    return items


def load_items(directory: Path) -> Items | None:
    """Read the items of a run without comparing them with its bound; None if absent or damaged."""
    path = f"{directory}/{NAME}"
    try:
        return _load(path, os.stat(path).st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)  # a report reads each file once for each pair; 160 kB each at 10,000 items
def _load(path: str, _written: int) -> Items | None:
    import numpy as np  # which a mistake typed at a command does without

    arrays = read_arrays(path, ("index", "total"))
    if arrays is None:
        return None
    index, total = arrays["index"], arrays["total"].astype(np.float64)
    order = np.argsort(index)
    index, total = index[order], total[order]
    if len(index) < 2 or not (index[1:] > index[:-1]).all() or not np.isfinite(total).all():
        return None
    return Items(index, total)


def read_arrays(file: str | Path, names: Sequence[str], square: str = "") -> dict[str, np.ndarray] | None:
    """Read the arrays ``names`` (n,) of equal length, ``square`` (n, n); None if damaged or of another kind.

    Nothing is unpickled, and all of them together are below TRIPTYCH_MAX_ITEMS once unpacked.
    """
    import numpy as np  # which a mistake typed at a command does without

    arrays = {}
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            entries = {name: archive.getinfo(f"{name}.npy") for name in names}
            if sum(entry.file_size for entry in entries.values()) > limit("TRIPTYCH_MAX_ITEMS"):
                return None
            for name, entry in entries.items():
                with archive.open(entry) as member:
                    data = io.BytesIO(member.read(entry.file_size + 1))  # more than it claims is not read
                arrays[name] = array = np.load(data, allow_pickle=False, max_header_size=HEADER)
                if array.dtype.kind not in KINDS or array.ndim != (2 if name == square else 1):
                    return None
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds
        return None
    return arrays if len({n for array in arrays.values() for n in array.shape}) == 1 else None
