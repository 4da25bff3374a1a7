"""MNIST and Fashion-MNIST from idx files, wherever torchvision, Debian or the user put them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from triptych.data.base import DataError
from triptych.data.batch import Split
from triptych.data.idx import find_idx, read_idx
from triptych.data.official import Official

PARTS = ("train", "t10k")


def stems(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


class Mnist(Official):
    """28 x 28, 256 grey levels, 10 classes.

    root: a folder with the four idx files (.gz or not), itself or in the places of `folders`.
    download=true fetches them there with torchvision. DataError if there are none, or they are damaged.
    """

    name = "mnist"
    official = "MNIST"  # torchvision's name of the class and of the folder
    also: tuple[str, ...] = ()  # further places: inside root, or absolute
    shape = (1, 28, 28)
    num_classes = 10

    @property
    def folders(self) -> list[Path]:
        """Where the files are looked for; its own folders first, as root may be shared with other sets."""
        inside = (f"{self.official}/raw", self.official, *self.also, ".")
        # An absolute path stands for itself; the user's own places come before it.
        return sorted((self.root / place for place in inside), key=lambda f: not f.is_relative_to(self.root))

    def find(self) -> Path | None:
        """The first folder that has all four files."""
        wanted = [stem for part in PARTS for stem in stems(part)]
        return next((f for f in self.folders if all(find_idx(f, stem) for stem in wanted)), None)

    def prepare_data(self) -> None:
        if not self.download or self.find() is not None:
            return
        from torchvision import datasets

        try:
            getattr(datasets, self.official)(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"data.download=True: cannot fetch {self.official} to {self.root}: {error}"
            ) from error

    def load(self) -> dict[str, Split]:
        folder = self.find()
        if folder is None:
            files = ", ".join(f"{stem}[.gz]" for part in PARTS for stem in stems(part))
            places = ", ".join(str(f) for f in self.folders)
            raise DataError(
                f"data.root={str(self.root)!r}: no {self.official} there; needs {files},"
                f" all in one of {places};"
                " or set data.download=true"
            )
        return self.split(self.read(folder, "train"), self.read(folder, "t10k"))

    def read(self, folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (n, 1, 28, 28) uint8, labels (n,) int64) of one official part."""
        image_file, label_file = (find_idx(folder, stem) or folder / stem for stem in stems(part))
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape[1:] != self.shape[1:]:
            raise DataError(
                f"data.root: {image_file} has images of {images.shape[1:]}, needs {self.shape[1:]}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"data.root: {image_file} has {len(images)} images but {label_file} has {len(labels)} labels;"
                " needs equal numbers"
            )
        if labels.max() >= self.num_classes:
            raise DataError(
                f"data.root: {label_file} has a label {labels.max()}, needs 0 .. {self.num_classes - 1}"
            )
        # Copies, as torch does not take read-only memory.
        return torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64))


class FashionMnist(Mnist):
    """Fashion-MNIST; as Mnist, and also where Debian's `dataset-fashion-mnist` puts it."""

    name = "fashion_mnist"
    official = "FashionMNIST"
    also = ("fashion-mnist", "/usr/share/datasets/fashion-mnist")
