"""CIFAR-10 through torchvision, from a local folder."""

import numpy as np
import torch

from triptych.data.base import OfficialData
from triptych.data.batch import Split
from triptych.data.source import check_cifar, convert_torchvision_errors


class Cifar10(OfficialData):
    """CIFAR-10: 32 x 32 pixels in colour, 256 levels, 10 classes.

    root contains `cifar-10-batches-py`; download=true downloads it. Raises DataError if it is
    missing.
    """

    name = "cifar10"
    shape = (3, 32, 32)
    num_classes = 10

    def prepare_data(self) -> None:
        if self.download:
            self.read(train=True, download=True)

    def load(self) -> dict[str, Split]:
        check_cifar(self.root)
        return self.split(self.read(train=True), self.read(train=False))

    def read(self, train: bool, download: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Read (images (n, 3, 32, 32) uint8, labels (n,) int64) of the training or the test set."""
        from torchvision import datasets

        with convert_torchvision_errors(self.root):
            part = datasets.CIFAR10(self.root, train=train, download=download)
        images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.tensor(part.targets)
