"""Find the files of data and check sizes, without torch: before a run's directory is made."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from triptych.data.layout import caption_file, read_layout, split_files
from triptych.declare import FilePath
from triptych.errors import DataError
from triptych.files import limit

# torchvision's name -> where its files are looked for beside root, root/NAME and root/NAME/raw
PLACES: dict[str, tuple[str, ...]] = {
    "MNIST": (),
    "FashionMNIST": ("fashion-mnist", "/usr/share/datasets/fashion-mnist"),  # the latter Debian's
}
IDX = {  # class -> torchvision's name
    "triptych.data.mnist.Mnist": "MNIST",
    "triptych.data.mnist.FashionMnist": "FashionMNIST",
}
IDX_KINDS = ("images-idx3", "labels-idx1")
CAPTIONED = "triptych.data.captions.CaptionedFolder"
FOLDERS = ("triptych.data.folder.ImageFolder", CAPTIONED)
CIFAR = ("triptych.data.cifar10.Cifar10", "cifar-10-batches-py")
TRAINING = {  # items to train on and validate with
    **dict.fromkeys(IDX, 60000),
    CIFAR[0]: 50000,
    "triptych.data.digits.Digits": 1500,
    "triptych.data.captions.DigitsCaptioned": 1500,
}
EMPTY = {
    "val": "checkpoint=best: data.val_fraction=0 leaves no items to choose by; use checkpoint=last",
    "test": "test=true: data.test_fraction=0 leaves no items to test; use test=false",
}
REPEATS = 4096  # items in a batch that may be larger than its training split: some of them are there twice


def folder_path(root: FilePath | None) -> Path:
    """Return ``root`` as a path; DataError if it is not set."""
    if root is None or not str(root).strip():
        must = "must be the folder that has the data, as in data.root=/path/to/it"
        raise DataError(f"data.root={'null' if root is None else repr(root)}: {must}")
    return Path(root).expanduser()


def idx_parts(root: Path, official: str) -> list[list[Path]]:
    """Find files [images, labels] of training and test part in the first folder with all; else DataError."""
    names = [[f"{part}-{kind}-ubyte" for kind in IDX_KINDS] for part in ("train", "t10k")]
    inside = (f"{official}/raw", official, *PLACES[official], ".")
    # An absolute path stands for itself; the user's own places come before it.
    folders = sorted((root / place for place in inside), key=lambda f: not f.is_relative_to(root))
    for folder in folders:
        # the plain file first, as it is quicker to read
        files = [[f for name in pair for f in _first(folder / name)] for pair in names]
        if all(len(pair) == 2 for pair in files):
            return files
    raise DataError(
        f"data.root={str(root)!r}: no {official} there; needs"
        f" {', '.join(f'{name}[.gz]' for pair in names for name in pair)}, all in one of"
        f" {', '.join(map(str, folders))}; or set data.download=true"
    )


def _first(file: Path) -> list[Path]:
    return [f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()][:1]


def missing_cifar(root: Path) -> DataError:
    """Return the error for a root without CIFAR-10's files, or with damaged ones."""
    return DataError(
        f"data.root={str(root)!r}: CIFAR-10 is missing or damaged there; needs the files"
        " cifar-10-batches-py/{data_batch_1 .. data_batch_5, test_batch, batches.meta};"
        " or set data.download=true"
    )


def check_batch(batch_size: int, items: int) -> None:
    """Raise DataError for a batch larger than the training split of ``items``; up to ``REPEATS`` are fine."""
    if batch_size > max(items, REPEATS):
        fix = f"{items} is one step with all of its items"
        raise DataError(f"data.batch_size={batch_size}: larger than the training split; {fix}")


def check_val_size(val_size: int, items: int) -> None:
    """Raise DataError unless something is left of ``items`` to train on."""
    if not 0 <= val_size < items:
        raise DataError(f"data.val_size={val_size}: {items} items in train; needs 0 to {items - 1}")


def check_pixels(size: int) -> None:
    """Raise DataError for images of ``size`` x ``size`` beyond TRIPTYCH_MAX_PIXELS."""
    pixels = size * size
    if pixels > (most := limit("TRIPTYCH_MAX_PIXELS")):
        raise DataError(f"data.size={size}: {pixels} pixels an image, more than {most}; needs a smaller one")


def check_memory(key: str, items: int, numbers: int) -> None:
    """Raise DataError if ``items`` of so many float32 numbers exceed this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (size := 4 * items * numbers) > memory:
        most = f"more than the {memory / 2**30:,.0f} GiB of this machine's memory"
        raise DataError(f"{key}={items}: takes {size / 2**30:,.0f} GiB, {most}; needs fewer items")


def check_data_files(data: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    """Check the part ``data`` of a configuration, if its class is ours, against files, reading no image.

    DataError: no such folder or files, images of which no split can be made or one that is ``needed``, "val"
    or "test", would be empty, sizes beyond reason.
    """
    target = str(data.get("_target_"))
    items: int | None = None
    if target in FOLDERS:
        root = folder_path(data.get("root"))
        check_pixels(data.get("size", 32))
        layout = read_layout(root)
        shares = data.get("val_fraction", 0.1), data.get("test_fraction", 0.1), data.get("data_seed", 0)
        splits = split_files(layout, root, *shares)
        for name in needed:
            if not len(splits[name]):
                raise DataError(EMPTY[name])
        items = len(splits["train"])
        if target == CAPTIONED:
            for file in layout.files:
                caption_file(root / file)
    elif target in TRAINING:
        held = data.get("val_size", 0)
        check_val_size(held, TRAINING[target])
        items = TRAINING[target] - held
        root = folder_path(data.get("root")) if target in IDX or target == CIFAR[0] else Path()
        if target in IDX and not data.get("download"):
            idx_parts(root, IDX[target])
        elif target == CIFAR[0] and not data.get("download") and not (root / CIFAR[1]).is_dir():
            raise missing_cifar(root)
    elif target.startswith("triptych.data."):
        for name in ("train_size", "val_size", "test_size"):
            check_memory(f"data.{name}", data.get(name, 1), max(2, data.get("dim", 2)))
        items = data.get("train_size")
    if items is not None:
        check_batch(data.get("batch_size", 1), items)
