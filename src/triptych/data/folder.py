"""A folder of the user's own images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import MappedRows, cache_folder, cache_name, cached_images
from triptych.data.layout import Layout, group_files, read_layout, split_files
from triptych.data.source import require_folder
from triptych.declare import Count, FilePath, Ge, Le, Lt, Role, Unit
from triptych.diffusion.condition import Condition
from triptych.errors import UserError
from triptych.terminal import progress_bar

# Allowed formats. Pillow detects the format by the content, and would pass an EPS to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
AHEAD = 256  # maximum number of images that are decoded ahead


def read_image(file: Path, size: int, channels: int, background: int | None = None) -> np.ndarray:
    """Read an image as (channels, size, size) uint8, upright, scaled and cropped to a square.

    The shorter side is scaled to `size`, and the centre is cut out. 16-bit channels are scaled to 8
    bits. Transparent pixels are blended with the grey level `background`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            upright = _to_eight_bits(ImageOps.exif_transpose(image), image.format, file)
            opaque = _on_background(upright, background, file).convert(
                "L" if channels == 1 else "RGB"
            )
        values = np.asarray(ImageOps.fit(opaque, (size, size), Image.Resampling.BICUBIC))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen exception types
        problem = f"cannot read the image {file}: {type(error).__name__}: {error}"
        raise DataError(f"data.root: {problem}") from error
    if channels == 1:
        return values[None]
    return values.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image, kind: str | None, file: Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        scaled = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        transparent_value = image.info.get("transparency")
        if transparent_value is not None:
            scaled.putalpha(Image.fromarray(values != transparent_value))
        return scaled
    if image.mode in ("I", "F"):
        raise DataError(
            f"data.root: {file} has 32-bit channels; convert it to 8 or 16 bits per channel"
        )
    return image


def _on_background(image: Image.Image, background: int | None, file: Path) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image
    if background is None:
        raise DataError(
            f"data.background=null: {file} has transparent pixels; pass the grey level behind "
            "them, from 0 (black) to 255 (white)"
        )
    return Image.alpha_composite(Image.new("RGBA", image.size, (*(background,) * 3, 255)), image)


Fraction = Annotated[float, Ge(0), Lt(1)]


class ImageFolder(DataModule):
    """A folder of images with 256 levels, which are decoded once and cached.

    Subfolders determine splits and classes, see ``layout.read_layout``. Without folders of splits,
    a hash of an image's path under root and of data_seed decides its split. So adding or removing
    images does not move others, and fractions are met on average. The items of a split are in the
    order of the hash.

    num_classes is known after setup, which reads the folder. num_workers threads decode the images
    into a file that later runs map into memory (``data.cache``).

    Raises DataError if there is no folder, if it has no images, or if a file cannot be decoded.
    """

    name = "folder"
    levels = 256

    def __init__(
        self,
        root: Annotated[FilePath | None, Role.PATH],
        size: Annotated[Count, Le(8192), Unit("pixels")] = 32,
        channels: Literal[1, 3] = 3,
        val_fraction: Annotated[Fraction, Role.SPLIT] = 0.1,
        test_fraction: Annotated[Fraction, Role.JUDGED] = 0.1,
        data_seed: Annotated[int, Role.JUDGED] = 0,
        background: Annotated[int, Ge(0), Le(255)] | None = None,
        group_by: Annotated[str | None, Role.JUDGED] = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root = require_folder(root)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.data_seed = data_seed
        self.background = background
        self.group_by = group_by
        self.shape = (channels, size, size)

    def load(self) -> dict[str, Split]:
        layout = read_layout(self.root)
        names, groups = None, None
        if self.group_by:
            names = group_files(layout.files, self.group_by)
            groups = torch.from_numpy(np.unique(names, return_inverse=True)[1])
        parts = split_files(layout, self.val_fraction, self.test_fraction, self.data_seed, names)
        self.accept(layout, parts)
        self.num_classes, self.class_names = len(layout.classes), layout.classes
        images = self.decode([self.root / file for file in layout.files])
        labels = torch.tensor(layout.labels)
        name = cache_name(self.root, layout.files, self.shape, self.background)
        array, digests = cached_images(cache_folder(), name, len(layout.files), self.shape, images)
        splits = {}
        for split, rows in parts.items():
            condition = None
            if layout.labels:
                condition = Condition(label=labels[rows])
            values = MappedRows(array, rows)
            row_groups = None if groups is None else groups[rows]
            splits[split] = Split(values, condition, self.levels, digests[rows], row_groups)
        return splits

    def accept(self, layout: Layout, parts: dict[str, np.ndarray]) -> None:
        """Check the files of the splits before any image is decoded.

        DataError: a subclass needs files that are missing.
        """

    def decode(self, files: list[Path]) -> Iterator[np.ndarray]:
        """Yield the decoded images of `files`, uint8 of `shape`, and show a progress bar.

        The bar appears when the first image is requested.
        """
        channels, size, _ = self.shape
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            try:
                with progress_bar(desc="images", total=len(files), disable=None) as bar:
                    # Limit the images that wait in memory.
                    for start in range(0, len(files), AHEAD):
                        some = files[start : start + AHEAD]
                        for image in pool.map(
                            lambda f: read_image(f, size, channels, self.background), some
                        ):
                            bar.update()
                            yield image
            finally:
                pool.shutdown(cancel_futures=True)
