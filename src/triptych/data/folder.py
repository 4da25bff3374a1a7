"""A folder of the user's own images."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from triptych.data.base import DataError, DataModule, folder_path, rank_world
from triptych.data.batch import Split
from triptych.data.cache import Mapped, cache_folder, cache_name, stored
from triptych.declare import Count, FilePath, Ge, Le, Lt, Role, Unit
from triptych.diffusion.condition import Condition
from triptych.errors import UserError
from triptych.limits import limit

TO = {"train": "train on", "val": "validate on", "test": "test on"}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# by content, whatever the name ends with: Pillow would hand an EPS named .png to Ghostscript
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
AHEAD = 256  # images decoded beyond the one that is asked for, at most
Image.MAX_IMAGE_PIXELS = None  # the limit is ours, below: an error from the first pixel too many


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


def place(file: Path, data_seed: int) -> float:
    """Where an image stands in [0, 1): a hash of its path under the root, whatever other images there are."""
    # NFC: some file systems hand é back as e with an accent of its own
    name = unicodedata.normalize("NFC", file.as_posix())
    digest = hashlib.blake2b(f"{data_seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def read_image(file: Path, size: int, channels: int, background: int | None = None) -> np.ndarray:
    """(channels, size, size) uint8: turned upright, the shorter side scaled to `size`, the centre cut out.

    16 bits a channel are scaled to 8. What is transparent lies over the grey level `background`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if (pixels := image.width * image.height) > (most := limit("TRIPTYCH_MAX_PIXELS")):
                raise DataError(
                    f"data.root: {file} has {image.width} x {image.height} = {pixels} pixels; up to {most}"
                    " are accepted, TRIPTYCH_MAX_PIXELS=... raises the limit"
                )
            upright = _eight_bits(ImageOps.exif_transpose(image), image.format, file)
            opaque = _over(upright, background, file).convert("L" if channels == 1 else "RGB")
        values = np.asarray(ImageOps.fit(opaque, (size, size), Image.Resampling.BICUBIC))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise DataError(
            f"data.root: cannot read the image {file}: {type(error).__name__}: {error}"
        ) from error
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def _eight_bits(image: Image.Image, kind: str | None, file: Path) -> Image.Image:
    """Grey of 16 bits as grey of 8, its whole range; what has more says nothing of its range."""
    if image.mode.startswith("I;16") or image.mode == "I" and kind == "PNG":
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"data.root: {file} has 32 bits a pixel; 8 or 16 a channel are accepted")
    return image


def _over(image: Image.Image, background: int | None, file: Path) -> Image.Image:
    """`image` without transparency; DataError if there is some and nothing said to lie behind."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image
    if background is None:
        raise DataError(
            f"data.background=null: {file} is transparent in part; a grey level from 0 (black) to 255 (white)"
            " to lay it over is accepted"
        )
    return Image.alpha_composite(Image.new("RGBA", image.size, (*(background,) * 3, 255)), image)


Fraction = Annotated[float, Ge(0), Lt(1)]


class ImageFolder(DataModule):
    """Images under root, 256 levels, decoded once. Two or more sub-folders are classes.

    An image tests, validates or trains by a hash of its own path under root and of data_seed, so that images
    which come or go move no other one; fractions are met on average. A split is in the hash's order.
    data_seed=None: the split of runs made before there was one, by position in a permutation of all.
    num_classes is known after setup, as the folder is read there. num_workers threads decode; with
    `cache` into a file that all later runs map (``data.cache``), else into memory, anew in each run.
    DataError: no folder, no images, a file that is no image, a split with a fraction above 0 and no image.
    """

    name = "folder"
    levels = 256

    def __init__(
        self,
        root: Annotated[FilePath | None, Role.PATH],
        size: Annotated[Count, Unit("pixels")] = 32,
        channels: Literal[1, 3] = 3,
        val_fraction: Annotated[Fraction, Role.SPLIT] = 0.1,
        test_fraction: Annotated[Fraction, Role.JUDGED] = 0.1,
        data_seed: Annotated[int | None, Role.JUDGED] = None,
        background: Annotated[int, Ge(0), Le(255)] | None = None,
        cache: Annotated[bool, Role.LOADING] = False,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root = folder_path(root)
        if val_fraction + test_fraction >= 1:
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: leave none to"
                " train on; a sum below 1 is accepted"
            )
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.data_seed = data_seed
        self.background, self.cache = background, cache
        self.shape = (channels, size, size)

    def load(self) -> dict[str, Split]:
        if not self.root.is_dir():
            raise DataError(f"data.root={str(self.root)!r}: no such folder; needs one with images")
        files = list_images(self.root)
        if not files:
            raise DataError(
                f"data.root={str(self.root)!r}: no images there; needs files {', '.join(ENDINGS)}"
            )
        parts = self.parts(files)
        names = classes(files)
        self.num_classes = len(names)
        images = self.decode([self.root / file for file in files])
        pick: Callable[[np.ndarray], tuple[Any, Tensor | None]]
        if not self.cache:
            values = torch.empty((len(files), *self.shape), dtype=torch.uint8)
            for i, image in enumerate(images):
                values[i] = torch.from_numpy(image.copy())
            pick = lambda part: (values[part], None)  # noqa: E731
        else:
            name = cache_name(self.root, files, self.shape, self.background)
            array, digests = stored(cache_folder(), name, len(files), self.shape, images)
            pick = lambda part: (Mapped(array, part), digests[part])  # noqa: E731
        labels = torch.tensor([names.index(file.parts[0]) for file in files]) if names else None
        return {
            name: Split(found, told, self.levels, digests)
            for name, part in zip(("train", "val", "test"), parts, strict=True)
            for found, digests in [pick(part)]
            for told in [Condition.of(label=None if labels is None else labels[part])]
        }

    def parts(self, files: list[Path]) -> list[np.ndarray]:
        """Which of `files` train, validate and test; DataError if there are to be some and are none."""
        if self.data_seed is None:
            return np.split(np.random.RandomState(0).permutation(len(files)), self.bounds(len(files)))
        at = np.array([place(file, self.data_seed) for file in files])
        order = np.argsort(at, kind="stable")
        # testing first, so that another val_fraction leaves the test set as it is
        ends = np.searchsorted(at[order], [self.test_fraction, self.test_fraction + self.val_fraction])
        test, val, train = np.split(order, ends)
        wanted = {"train": 1.0, "val": self.val_fraction, "test": self.test_fraction}
        for (name, fraction), part in zip(wanted.items(), (train, val, test), strict=True):
            if fraction and not len(part):
                raise self.too_few(len(files), name)
        return [train, val, test]

    def bounds(self, n: int) -> tuple[int, int]:
        """Where validation and test start in the permutation; DataError if nothing is left to train on."""
        val, test = (max(1, round(n * f)) if f else 0 for f in (self.val_fraction, self.test_fraction))
        if val + test >= n:
            raise self.too_few(n, "train")
        return n - val - test, n - test

    def too_few(self, n: int, split: str) -> DataError:
        return DataError(
            f"data.root={str(self.root)!r}: its {n} images leave none to {TO[split]} with"
            f" data.val_fraction={self.val_fraction}, data.test_fraction={self.test_fraction} and"
            f" data.data_seed={self.data_seed}; needs more images, other fractions or another seed"
        )

    def decode(self, files: list[Path]) -> Iterator[np.ndarray]:
        """Each of `files` in turn, `shape` uint8; a bar shows how far, once somebody asks for the first."""
        channels, size, _ = self.shape
        quiet = True if rank_world()[0] else None  # None: shown on a terminal only
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            try:
                with tqdm(desc="images", total=len(files), leave=False, disable=quiet) as bar:
                    for start in range(0, len(files), AHEAD):  # not all at once: they would wait in memory
                        some = files[start : start + AHEAD]
                        for image in pool.map(lambda f: read_image(f, size, channels, self.background), some):
                            bar.update()
                            yield image
            finally:
                pool.shutdown(cancel_futures=True)
