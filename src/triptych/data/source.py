"""Find the files of a data set and check sizes, without torch, before a run is created."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.data.layout import read_layout
from triptych.declare import FilePath
from triptych.errors import DataError

# {name in torchvision: directories to search, besides root, root/NAME and root/NAME/raw}
PLACES: dict[str, tuple[str, ...]] = {
    "MNIST": (),
    # The second folder is that of Debian's package.
    "FashionMNIST": ("fashion-mnist", "/usr/share/datasets/fashion-mnist"),
}
IDX_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CAPTIONED = "triptych.data.captions.CaptionedFolder"
FOLDERS = ("triptych.data.folder.ImageFolder", CAPTIONED)
CIFAR_FOLDER = "cifar-10-batches-py"


def require_folder(root: FilePath | None) -> Path:
    """Return ``root`` as a path; raise DataError if it is not set."""
    if root is None:
        raise DataError("data.root: not set; pass the folder of the data, as data.root=/path/to/it")
    return Path(root).expanduser()


def idx_parts(root: Path, official: str) -> list[list[Path]]:
    """Return the idx files [images, labels] of the training and the test set.

    They are taken from the first folder that has all four files. Raises DataError if no folder has
    them.
    """
    names = [f"{part}-ubyte" for part in IDX_PARTS]
    inside = (f"{official}/raw", official, *PLACES[official], ".")
    # Search the folders below root first, then the absolute paths.
    folders = sorted((root / place for place in inside), key=lambda f: not f.is_relative_to(root))
    for folder in folders:
        files = [_unpacked_or_gz(folder / name) for name in names]
        if all(file.is_file() for file in files):
            return [files[:2], files[2:]]
    listed = ", ".join(f"{name}[.gz]" for name in names)
    places = ", ".join(map(str, folders))
    raise DataError(
        f"data.root={str(root)!r}: no {official} there; put {listed} into one of {places}; "
        "or set data.download=true"
    )


def _unpacked_or_gz(file: Path) -> Path:
    """Return the unpacked file, which is quicker to read, or its .gz if there is no such file."""
    return file if file.is_file() else file.with_name(f"{file.name}.gz")


@contextmanager
def convert_torchvision_errors(root: Path) -> Iterator[None]:
    """Convert torchvision's errors in the block, from downloads or damaged files, to DataError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.root={str(root)!r}: {error}") from error


def check_val_size(val_size: int, items: int) -> None:
    """Raise DataError unless validation leaves some of the ``items`` to train on."""
    if not 0 <= val_size < items:
        raise DataError(
            f"data.val_size={val_size}: train has {items} items; must be 0 to {items - 1}"
        )


def check_cifar(root: Path) -> None:
    """Raise DataError if ``root`` does not contain the folder of CIFAR-10."""
    if not (root / CIFAR_FOLDER).is_dir():
        raise DataError(
            f"data.root={str(root)!r}: no folder {CIFAR_FOLDER} in it; pass the folder that "
            "contains it, or set data.download=true"
        )


# {class: function that finds its files, or raises DataError}
FILES: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(FOLDERS, read_layout),
    "triptych.data.mnist.Mnist": lambda root: idx_parts(root, "MNIST"),
    "triptych.data.mnist.FashionMnist": lambda root: idx_parts(root, "FashionMNIST"),
    "triptych.data.cifar10.Cifar10": check_cifar,
}


def check_data_files(data: Mapping[str, Any]) -> None:
    """Check that the files of the configured data exist, if this package defines the data class."""
    find = FILES.get(data["_target_"])
    if find is not None and not data.get("download"):
        find(require_folder(data.get("root")))
