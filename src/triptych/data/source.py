"""Find the files of data and check sizes, without torch: before a run's directory is made."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triptych.data.layout import read_layout
from triptych.declare import FilePath
from triptych.errors import DataError
from triptych.files import limit

# torchvision's name -> where its files are looked for beside root, root/NAME and root/NAME/raw
PLACES: dict[str, tuple[str, ...]] = {
    "MNIST": (),
    "FashionMNIST": ("fashion-mnist", "/usr/share/datasets/fashion-mnist"),  # the latter Debian's
}
IDX_KINDS = ("images-idx3", "labels-idx1")
CAPTIONED = "triptych.data.captions.CaptionedFolder"
FOLDERS = ("triptych.data.folder.ImageFolder", CAPTIONED)
CIFAR_FOLDER = "cifar-10-batches-py"
REPEATS = 4096  # items in a batch that may exceed its training split: some of them are there twice


def folder_path(root: FilePath | None) -> Path:
    """Return ``root`` as a path; DataError if it is not set."""
    if not root:
        must = "must be the folder that has the data, as in data.root=/path/to/it"
        raise DataError(f"data.root={root!r}: {must}")
    return Path(root).expanduser()


def idx_parts(root: Path, official: str) -> list[list[Path]]:
    """Find files [images, labels] of training and test part in the first folder with all; else DataError."""
    parts = [[f"{part}-{kind}-ubyte" for kind in IDX_KINDS] for part in ("train", "t10k")]
    inside = (f"{official}/raw", official, *PLACES[official], ".")
    # An absolute path stands for itself; the user's own places come before it.
    folders = sorted((root / place for place in inside), key=lambda f: not f.is_relative_to(root))
    for folder in folders:
        files = [[_plain_or_zipped(folder / name) for name in names] for names in parts]
        if all(file.is_file() for pair in files for file in pair):
            return files
    names = ", ".join(f"{name}[.gz]" for pair in parts for name in pair)
    places = ", ".join(map(str, folders))
    raise DataError(
        f"data.root={str(root)!r}: no {official} there; needs {names}, all in one of {places}; "
        "or set data.download=true"
    )


def _plain_or_zipped(file: Path) -> Path:
    """Return the file, which is quicker to read, or if there is none its .gz."""
    return file if file.is_file() else file.with_name(f"{file.name}.gz")


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
    most = limit("TRIPTYCH_MAX_PIXELS")
    if size * size > most:
        problem = f"{size * size} pixels an image, more than {most}"
        raise DataError(f"data.size={size}: {problem}; needs a smaller one")


def check_memory(key: str, items: int, numbers: int) -> None:
    """Raise DataError if ``items`` of so many float32 numbers exceed this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = 4 * items * numbers
    if size > memory:
        most = f"more than the {memory / 2**30:,.0f} GiB of this machine's memory"
        raise DataError(f"{key}={items}: takes {size / 2**30:,.0f} GiB, {most}; needs fewer items")


def check_cifar(root: Path) -> None:
    """Raise DataError for a root without CIFAR-10's folder."""
    if not (root / CIFAR_FOLDER).is_dir():
        raise missing_cifar(root)


FILES: dict[str, Callable[[Path], Any]] = {  # class -> finds its files, or raises DataError
    **dict.fromkeys(FOLDERS, read_layout),
    "triptych.data.mnist.Mnist": lambda root: idx_parts(root, "MNIST"),
    "triptych.data.mnist.FashionMnist": lambda root: idx_parts(root, "FashionMNIST"),
    "triptych.data.cifar10.Cifar10": check_cifar,
}


def check_data_files(data: Mapping[str, Any]) -> None:
    """Check that the files of the part ``data`` of a configuration are there, if its class is ours."""
    find = FILES.get(data["_target_"])
    if find is not None and not data.get("download"):
        find(folder_path(data.get("root")))
