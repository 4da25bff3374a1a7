"""CIFAR-10 through torchvision, from a local folder."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch

from triptych.data.base import DataError, DataModule, folder_path, official_splits
from triptych.data.batch import Split
from triptych.declare import FilePath, Role, Unit, Whole


class Cifar10(DataModule):
    """32 x 32 in colour, 256 levels, 10 classes.

    Test: the official one. Validation: the last `val_size` of the official training set. Both
    are permuted by RandomState(0) first, so that any first few are a fair sample.
    root holds `cifar-10-batches-py`; download=true fetches it. DataError if it is missing or damaged.
    """

    name = "cifar10"
    shape = (3, 32, 32)
    levels = 256
    num_classes = 10

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

    def prepare_data(self) -> None:
        if self.download:
            self.read(train=True, download=True)

    def load(self) -> dict[str, Split]:
        return official_splits(self.read(train=True), self.read(train=False), self.val_size)

    def read(self, train: bool, download: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (n, 3, 32, 32) uint8, labels (n,) int64) of one official part."""
        from torchvision import datasets

        try:
            part = datasets.CIFAR10(self.root, train=train, download=download)
        except (OSError, RuntimeError) as error:
            if download:
                message = f"data.download=True: cannot fetch CIFAR-10 to {self.root}: {error}"
            else:
                message = (
                    f"data.root={str(self.root)!r}: CIFAR-10 is missing or damaged there; needs the files"
                    " cifar-10-batches-py/{data_batch_1 .. data_batch_5, test_batch, batches.meta};"
                    " or set data.download=true"
                )
            raise DataError(message) from error
        images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.tensor(part.targets)
