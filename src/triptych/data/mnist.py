"""MNIST, Fashion-MNIST and files like theirs, wherever torchvision, Debian or the user put them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from triptych.data.base import DataError, Official
from triptych.data.batch import Split
from triptych.data.idx import read_idx
from triptych.data.source import idx_parts
from triptych.declare import Count, FilePath, Len, Role

Part = tuple[torch.Tensor, torch.Tensor]


class IdxFiles(Official):
    """Grey images, 256 levels, and labels in four idx files (.gz or not): see ``source.idx_parts``."""

    official = ""  # torchvision's name of the class and of the folder
    prefix = ""  # of the files' names
    size: tuple[int, ...] | None = None  # height and width that images must have; None: those of the first
    shape_typed = False

    def load(self) -> dict[str, Split]:
        parts = idx_parts(self.root, self.official, self.prefix)
        return self.split(*self.labelled(*(self.read(*files) for files in parts)))

    def labelled(self, train: Part, test: Part) -> tuple[Part, Part]:
        """Return both parts with labels that count from 0."""
        return train, test

    def read(self, image_file: Path, label_file: Path) -> Part:
        """Read (images (n, 1, H, W) uint8, labels (n,) int64) of one official part."""
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        self.size = self.size or images.shape[1:]
        if images.shape[1:] != self.size:
            key = f"data.shape={[*self.size]}" if self.shape_typed else f"data.root={str(self.root)!r}"
            raise DataError(f"{key}: {image_file} has images of {images.shape[1:]}, needs {self.size}")
        if len(images) != len(labels):
            raise DataError(
                f"data.root: {image_file} has {len(images)} images but {label_file} has {len(labels)} labels;"
                " needs equal numbers"
            )
        # Copies, as torch does not take read-only memory.
        return torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64))


class Idx(IdxFiles):
    """Files like MNIST's, of any size; classes are the distinct labels of the training part, in their order.

    Args:
        root: the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte and both of t10k (or test).
        shape: what images must have, (height, width) or (1, height, width); None: any.
        prefix: of the files' names, as "emnist-letters-".

    Raises:
        DataError: no such files, damaged ones, or a label in test that the training part lacks.
    """

    name = "idx"

    def __init__(
        self,
        root: Annotated[FilePath | None, Role.PATH],
        shape: Annotated[Sequence[Count], Len(2, 3), Role.DATA] | None = None,
        prefix: Annotated[str, Role.DATA] = "",
        **loading: Any,
    ) -> None:
        super().__init__(root, **loading)
        if self.download:
            raise DataError("data.download=true: data=idx reads files of your own; remove the key")
        if shape is not None and [*shape][:-2] not in ([], [1]):
            raise DataError(f"data.shape={[*shape]}: idx images are grey; needs [height,width]")
        self.shape_typed = shape is not None
        self.size, self.prefix = None if shape is None else tuple(shape)[-2:], prefix

    def labelled(self, train: Part, test: Part) -> tuple[Part, Part]:
        known, label = train[1].unique(return_inverse=True)
        place = torch.searchsorted(known, test[1]).clamp(max=len(known) - 1)
        if len(unknown := test[1][known[place] != test[1]]):
            raise DataError(
                f"data.root={str(self.root)!r}: test has the label {unknown[0]}, which train has not;"
                " needs all classes in train"
            )
        self.shape = tuple(train[0].shape[1:])
        self.num_classes, self.class_names = len(known), [str(k) for k in known.tolist()]
        return (train[0], label), (test[0], place)


class Mnist(IdxFiles):
    """28 x 28, 256 grey levels, 10 classes.

    root: a folder with the four idx files (.gz or not), itself or as torchvision places them in it.
    download=true fetches them there with torchvision. DataError if there are none, or they are damaged.
    """

    name = "mnist"
    official = "MNIST"
    shape = (1, 28, 28)
    size = (28, 28)
    num_classes = 10

    def prepare_data(self) -> None:
        if not self.download:
            return
        try:
            idx_parts(self.root, self.official)
        except DataError:
            self.fetch()

    def fetch(self) -> None:
        """Download with torchvision; DataError if that fails."""
        from torchvision import datasets

        try:
            getattr(datasets, self.official)(self.root, download=True)
        except (OSError, RuntimeError) as error:
            problem = f"cannot fetch {self.official} to {self.root}: {error}"
            raise DataError(f"data.download=True: {problem}") from error

    def read(self, image_file: Path, label_file: Path) -> Part:
        images, labels = super().read(image_file, label_file)
        if labels.max() >= self.num_classes:
            raise DataError(
                f"data.root: {label_file} has a label {labels.max()}, needs 0 .. {self.num_classes - 1}"
            )
        return images, labels


class FashionMnist(Mnist):
    """Fashion-MNIST; as Mnist, and also where Debian's `dataset-fashion-mnist` puts it."""

    name = "fashion_mnist"
    official = "FashionMNIST"
