"""A folder of the user's own images."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from triptych.data.base import DataError, DataModule, Loading, folder_path, rank_world, whole
from triptych.data.batch import Split

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def list_images(root: Path) -> list[Path]:
    """Image files under `root`, relative to it and sorted; hidden files and folders are left out."""
    found = []
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root) for name in names]
    return sorted(found, key=lambda file: file.as_posix())


def classes(files: list[Path]) -> list[str]:
    """Sorted names of the class folders: the top folders, where there are two or more; else none.

    DataError if some images lie in folders and some beside them: their class would be a guess.
    """
    tops = {file.parts[0] if len(file.parts) > 1 else "" for file in files}
    if len(tops) > 1 and "" in tops:
        loose = next(file for file in files if len(file.parts) == 1)
        raise DataError(f"data.root: {loose} lies beside class folders; needs all images in folders, or none")
    return sorted(tops) if len(tops) > 1 else []


def read_image(file: Path, size: int, channels: int) -> np.ndarray:
    """(channels, size, size) uint8: turned upright, the shorter side scaled to `size`, the centre cut out."""
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise DataError(
            f"data.root: cannot read the image {file}: {type(error).__name__}: {error}"
        ) from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


class ImageFolder(DataModule):
    """Images under root, 256 levels, decoded once. Two or more sub-folders are classes.

    Files are sorted by path, then permuted by RandomState(0): train first, then validation, then test; a
    fraction above 0 gets at least one image. num_classes is known after setup, as the folder is read there.
    num_workers threads decode. DataError: no folder, no images, a file that is no image.
    """

    name = "folder"
    levels = 256

    def __init__(
        self,
        root: str | Path | None,
        size: int = 32,
        channels: int = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.root = folder_path(root)
        if channels not in (1, 3):
            raise DataError(f"data.channels={channels!r}: needs 1 (grey) or 3 (colour)")
        for key, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise DataError(f"data.{key}={value!r}: needs a number from 0 up to, not including, 1")
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.shape = (channels, whole("size", size, 1), size)

    def load(self) -> dict[str, Split]:
        if not self.root.is_dir():
            raise DataError(f"data.root={str(self.root)!r}: no such folder; needs one with images")
        files = list_images(self.root)
        if not files:
            raise DataError(
                f"data.root={str(self.root)!r}: no images there; needs files {', '.join(ENDINGS)}"
            )
        bounds = self.bounds(len(files))
        names = classes(files)
        self.num_classes = len(names)
        values = self.decode([self.root / file for file in files])
        labels = torch.tensor([names.index(file.parts[0]) for file in files]) if names else None
        parts = np.split(np.random.RandomState(0).permutation(len(files)), bounds)
        return {
            name: Split(values[part], None if labels is None else labels[part], self.levels)
            for name, part in zip(("train", "val", "test"), parts, strict=True)
        }

    def bounds(self, n: int) -> tuple[int, int]:
        """Where validation and test start in the permutation; DataError if nothing is left to train on."""
        val, test = (max(1, round(n * f)) if f else 0 for f in (self.val_fraction, self.test_fraction))
        if val + test >= n:
            raise DataError(
                f"data.root={str(self.root)!r}: its {n} images leave none to train on with"
                f" data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction};"
                " needs more images"
            )
        return n - val - test, n - test

    def decode(self, files: list[Path]) -> torch.Tensor:
        """(n, *shape) uint8, in the order of `files`."""
        channels, size, _ = self.shape
        values = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        quiet = True if rank_world()[0] else None  # None: shown on a terminal only
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            try:
                images = pool.map(lambda file: read_image(file, size, channels), files)
                for i, image in enumerate(tqdm(images, "images", len(files), leave=False, disable=quiet)):
                    values[i] = torch.from_numpy(image.copy())
            finally:
                pool.shutdown(cancel_futures=True)
        return values
