"""Data sets of images that come with an official training set and an official test set."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from torch import Tensor

from triptych.data.base import DataModule, hold_out
from triptych.data.batch import Split
from triptych.data.source import folder_path
from triptych.declare import FilePath, Role, Unit, Whole
from triptych.diffusion.condition import Condition


class Official(DataModule):
    """Test: the official one. Validation: the last `val_size` of the official training set.

    Both are permuted by RandomState(0) first, so that any first few are a fair sample.
    """

    levels = 256

    def __init__(
        self,
        root: Annotated[FilePath | None, Role.PATH],
        val_size: Annotated[Whole, Role.SPLIT, Unit("items")] = 5000,
        download: Annotated[bool, Role.LOADING] = False,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root, self.download = folder_path(root), download
        self.val_size = val_size

    def split(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Split]:
        """The splits of two official parts, each (values (n, *shape) uint8, labels (n,) int64)."""
        order, test_order = (np.random.RandomState(0).permutation(len(values)) for values, _ in (train, test))
        chosen = dict(zip(("train", "val"), hold_out(order, self.val_size), strict=True))
        splits = {name: Split(train[0][i], Condition(label=train[1][i]), 256) for name, i in chosen.items()}
        return splits | {"test": Split(test[0][test_order], Condition(label=test[1][test_order]), 256)}
