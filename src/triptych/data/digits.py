"""Handwritten digits, 8 x 8, that scikit-learn ships: real data without a download."""

import gzip
from typing import Annotated, Any

import numpy as np
import torch

from triptych.config.source import module_paths
from triptych.data.base import DataError, DataModule, hold_out, select_splits
from triptych.data.batch import Split
from triptych.declare import Ge, Le, Role, Unit

N_TEST = 297  # number of test items


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read images (1797, 1, 8, 8) uint8 of 0 .. 16, and labels (1797,) int64.

    They are in scikit-learn's order.
    """
    # Read the file directly, because the import of sklearn.datasets takes seconds.
    files = module_paths("sklearn.datasets.data")
    if not files:
        raise DataError(
            "data=digits: needs scikit-learn, which ships the images: pip install scikit-learn"
        )
    with gzip.open(files[0] / "digits.csv.gz", "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)


class Digits(DataModule):
    """Handwritten digits of 8 x 8 pixels, with 17 grey levels and 10 classes.

    They are permuted by RandomState(0): by default 1350 for training, 150 for validation, and the
    last 297 for the test. Validation gets the last val_size (0 .. 1499) of the first 1500.
    """

    name = "digits"
    shape = (1, 8, 8)
    levels = 17
    num_classes = 10

    def __init__(
        self,
        val_size: Annotated[int, Ge(0), Le(1499), Role.SPLIT, Unit("items")] = 150,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.val_size = val_size

    def load(self) -> dict[str, Split]:
        values, labels = read_digits()
        order = np.random.RandomState(0).permutation(len(values))
        train, val = hold_out(order[:-N_TEST], self.val_size)
        parts = {"train": train, "val": val, "test": order[-N_TEST:]}
        return select_splits(torch.from_numpy(values), torch.from_numpy(labels), parts, self.levels)
