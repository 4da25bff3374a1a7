"""``items.npz``: the bound of each item of a split, for whoever pairs runs item by item."""

import io
from pathlib import Path

import numpy as np

from triptych.models.accounting import Account
from triptych.run.directory import write_atomic

COLUMNS = ("total", "prior", "reconstruction", "diffusion", "draw_variance")


def write_items(path: Path, account: Account) -> bool:
    """Write the items of an account; False, and nothing, where it has no bound per item.

    ``index`` (n,) int64, rising; ``total``, ``prior``, ``reconstruction``, ``diffusion`` (n,) float64 in the
    reported unit, each item's mean over its draws; ``draw_variance`` (n,) float64, of that mean, in the
    unit's square; NaN where one draw was taken. Plain arrays: ``numpy.load(path, allow_pickle=False)``.
    """
    if account.per_item is None:
        return False
    index, rows = account.per_item
    buffer = io.BytesIO()
    arrays = dict(zip(COLUMNS, rows.numpy().T.copy(), strict=True))
    np.savez(buffer, index=index.numpy().astype(np.int64), **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
    return True
