"""Helpers for several tests of the data."""

import functools
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from tests import refusal
from triptych.data.base import DataError
from triptych.data.folder import ImageFolder

refused = functools.partial(refusal.refused, error=DataError)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write an idx file, gzipped if its name says so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = idx_bytes(array.astype(np.uint8))
    file.write_bytes(gzip.compress(data, 1) if file.suffix == ".gz" else data)


def write_mnist(folder: Path, train: int = 30, test: int = 7, ending: str = ".gz") -> None:
    """Write a small MNIST with labels i % 10.

    Image i is filled with i in train and with 100 + i in test.
    """
    for part, n, start in (("train", train, 0), ("t10k", test, 100)):
        images = np.broadcast_to(np.arange(start, start + n)[:, None, None], (n, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", np.arange(n) % 10)


def save_images(folder: Path, n: int) -> None:
    """Save n small images, in files 00.png and so on; image i is (i, 0, 100) everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (20, 12), (i, 0, 100)).save(folder / f"{i:02d}.png")


def image_folder(root: Path, **keys) -> ImageFolder:
    """Load the images of a folder, with 8 x 8 pixels."""
    data = ImageFolder(root, **{"size": 8, "data_seed": 0} | keys)
    data.setup()
    return data


def items(split) -> set[tuple]:
    """Return the values of each item."""
    return {tuple(row) for row in split.values[:].flatten(1).tolist()}
