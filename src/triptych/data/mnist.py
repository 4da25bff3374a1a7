"""MNIST and Fashion-MNIST from idx files, as torchvision or Debian's packages place them."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from triptych.data.base import DataError, OfficialData
from triptych.data.batch import Split
from triptych.data.source import convert_torchvision_errors, idx_parts


def read_idx(file: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of `dims` dimensions in an idx file, plain or gzipped.

    The header is 0, 0, 8 (for uint8), dims, then each dimension as a big-endian uint32. Raises
    DataError if it cannot be read or is not an idx file.
    """
    head = 4 + 4 * dims
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.root: cannot read {file}: {error}") from error
    shape = tuple(np.frombuffer(data[4:head].ljust(4 * dims, b"\0"), ">u4").tolist())
    is_complete = min(shape) > 0 and len(data) == head + math.prod(shape)
    if data[:4] != bytes([0, 0, 8, dims]) or not is_complete:
        raise DataError(
            f"data.root: {file} is not a complete idx file with {dims} dimensions; replace it"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


class Mnist(OfficialData):
    """MNIST: 28 x 28 pixels, 256 grey levels, 10 classes.

    root is a folder with the four idx files (.gz or not), or torchvision's root folder, into which
    download=true downloads them. Raises DataError if files are missing or damaged.
    """

    name = "mnist"
    official = "MNIST"  # name of the class and the folder in torchvision
    shape = (1, 28, 28)
    num_classes = 10

    def prepare_data(self) -> None:
        if not self.download:
            return
        from torchvision import datasets

        try:
            idx_parts(self.root, self.official)
        except DataError:
            with convert_torchvision_errors(self.root):
                getattr(datasets, self.official)(self.root, download=True)

    def load(self) -> dict[str, Split]:
        train, test = (self.read(*files) for files in idx_parts(self.root, self.official))
        return self.split(train, test)

    def read(self, image_file: Path, label_file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Read (images (n, 1, 28, 28) uint8, labels (n,) int64) of the training or the test set."""
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"data.root: {image_file} has {len(images)} images, {label_file} {len(labels)} "
                "labels; replace the wrong file"
            )
        # Copy the arrays, as torch does not support read-only memory.
        return torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64))


class FashionMnist(Mnist):
    """Fashion-MNIST: files like those of `Mnist`, or of Debian's `dataset-fashion-mnist`."""

    name = "fashion_mnist"
    official = "FashionMNIST"
