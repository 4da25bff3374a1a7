"""Find data files: image folders and idx files; check them without torch.

Top folders of an image folder that are named as splits are splits, in the words of Hugging Face's imagefolder
(datasets, ``data_files.py``), and classes lie beneath, as in torchvision's ``ImageFolder``; else two or more
top folders are classes, and a hash of each image's path splits them.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.data.idx import find_idx, read_header
from triptych.declare import FilePath
from triptych.errors import DataError
from triptych.limits import limit

if TYPE_CHECKING:
    import numpy as np

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FOREIGN = ("__MACOSX", "@eaDir")  # folders that archives and file servers add
# torchvision's name -> where its files are looked for beside root, root/NAME and root/NAME/raw
PLACES: dict[str, tuple[str, ...]] = {
    "MNIST": (),
    "FashionMNIST": ("fashion-mnist", "/usr/share/datasets/fashion-mnist"),  # the latter Debian's
}
IDX = {  # class -> torchvision's name
    "triptych.data.mnist.Idx": "",
    "triptych.data.mnist.Mnist": "MNIST",
    "triptych.data.mnist.FashionMnist": "FashionMNIST",
    "triptych.data.captions.FashionCaptioned": "FashionMNIST",
}
CAPTIONED = "triptych.data.captions.CaptionedFolder"
FOLDERS = ("triptych.data.folder.ImageFolder", CAPTIONED)
CIFAR = ("triptych.data.cifar10.Cifar10", "cifar-10-batches-py")
TRAINING = {  # items to train on and validate with, where no file has to be read for it
    CIFAR[0]: 50000,
    "triptych.data.digits.Digits": 1500,
    "triptych.data.captions.DigitsCaptioned": 1500,
}
REPEATS = 4096  # items in a batch that may be larger than its training split: some of them are there twice
TO = {"train": "train on", "val": "validate on", "test": "test on"}


def folder_path(root: FilePath | None) -> Path:
    """Return ``root`` as a path; DataError if it is not set."""
    if root is None or not str(root).strip():
        must = "must be the folder that has the data, as in data.root=/path/to/it"
        raise DataError(f"data.root={'null' if root is None else repr(root)}: {must}")
    return Path(root).expanduser()


# image folders ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Images under a root.

    Attributes:
        files: relative to the root, sorted.
        splits: of each file, "train", "val" or "test" by its top folder; "" where a hash is to decide.
        classes: sorted names, over all splits; empty: no labels.
        labels: of each file, its place in ``classes``; empty without classes.
        notes: lines on what was left out.
    """

    files: list[Path]
    splits: list[str]
    classes: list[str]
    labels: list[int]
    notes: list[str]


def list_files(root: Path) -> tuple[list[Path], list[Path]]:
    """List (images, other files) under ``root``, relative to it and sorted, without hidden and foreign ones.

    Raises:
        DataError: a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"data.root: cannot read {error.filename}: {error.strerror}; fix its permissions")

    images: list[Path] = []
    others: list[Path] = []
    for folder, inner, names in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(folder)
        inner[:] = [n for n in inner if not n.startswith(".") and n not in FOREIGN and not _above(here / n)]
        for name in names:
            if not name.startswith("."):
                kind = images if name.lower().endswith(ENDINGS) else others
                kind.append((here / name).relative_to(root))
    return sorted(images, key=Path.as_posix), sorted(others, key=Path.as_posix)


def _above(folder: Path) -> bool:
    """Return whether ``folder`` is a link to one that it lies in: its images would appear again and again."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def read_layout(root: Path) -> Layout:
    """Return the images under ``root`` with their splits and classes, by the names of folders.

    Raises:
        DataError: no images; images both in folders and beside them; a folder named as a split beside others
            that are none; two folders for one split; none to train on.
    """
    key = f"data.root={str(root)!r}"
    if not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"{key}: {problem}; needs one with images")
    files, others = list_files(root)
    if not files:
        raise DataError(f"{key}: no images there; they end in {', '.join(ENDINGS)}")
    tops = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    named = {top: SPLIT_OF[top.lower()] for top in tops if top.lower() in SPLIT_OF}
    if named:
        _check_splits(files, tops, named, key)
    splits = [named[file.parts[0]] if named else "" for file in files]
    depth = 1 if named else 0
    classes = _classes(files, depth, key)
    numbers = {name: k for k, name in enumerate(classes)}
    labels = [numbers[file.parts[depth]] for file in files] if classes else []
    return Layout(files, splits, classes, labels, _notes(root, files, others, tops))


def _check_splits(files: list[Path], tops: list[str], named: dict[str, str], key: str) -> None:
    """Raise DataError unless all images lie in folders of splits, one each, with train among them."""
    beside = [f"{top}/" for top in tops if top not in named]
    beside += [str(file) for file in files if len(file.parts) == 1]
    first = next(iter(named))
    if beside:
        raise DataError(
            f"{key}: {first}/ is named as a split, but {beside[0]} lies beside it; put classes into"
            " train/CLASS/, or rename the folder"
        )
    for one, other in pairwise(sorted(named, key=lambda top: named[top])):
        if named[one] == named[other]:
            raise DataError(f"{key}: {one}/ and {other}/ are one split, {named[one]}; merge them")
    if "train" not in named.values():
        raise DataError(f"{key}: {first}/ is there, but no train/; add it, or name {first} as data.root")


def _classes(files: list[Path], depth: int, key: str) -> list[str]:
    """List sorted folders at ``depth``, [] for fewer than two; DataError if images lie beside them."""
    names = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
    loose = [file for file in files if len(file.parts) == depth + 1]
    if names and loose:
        raise DataError(f"{key}: {loose[0]} lies beside class folders; needs all images in folders, or none")
    return sorted(names) if len(names) > 1 else []


def _notes(root: Path, files: list[Path], others: list[Path], tops: list[str]) -> list[str]:
    """Return what is left out, in one line: files that are no images by name, folders without one."""
    captions = {file.with_suffix(".txt") for file in files}
    kinds = Counter(file.suffix.lower() or file.name for file in others if file not in captions)
    empty = [
        entry.name
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in (*FOREIGN, *tops)
    ]
    parts = [f"{kinds.total()} files that are no images by name ({_some(list(kinds))})"] if kinds else []
    parts += [f"folders without images ({_some(empty)})"] if empty else []
    return [f"data: left out {' and '.join(parts)}"] if parts else []


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def place(file: Path, data_seed: int) -> float:
    """Hash an image's path under the root to [0, 1), whatever other images there are."""
    # NFC: some file systems hand é back as e with an accent of its own
    name = unicodedata.normalize("NFC", file.as_posix())
    digest = hashlib.blake2b(f"{data_seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def split_files(
    layout: Layout, root: Path, val_fraction: float, test_fraction: float, data_seed: int | None
) -> dict[str, np.ndarray]:
    """Split ``layout.files`` by their folders, else by ``place``.

    A split is in the hash's order. A split without a folder is held out of train/ by its fraction.
    data_seed=None: by position in a permutation of all, as in runs before there were hashes.

    Raises:
        DataError: a split that is to have items has none, or a class has none to train on.
    """
    check_fractions(val_fraction, test_fraction)
    import numpy as np  # not for who only checks a configuration

    n, own = len(layout.files), np.array(layout.splits)
    val = 0.0 if "val" in layout.splits else val_fraction
    test = 0.0 if "test" in layout.splits else test_fraction
    pool = np.flatnonzero((own == "") | (own == "train"))
    if data_seed is None:
        order = np.random.RandomState(0).permutation(n)
        pool = order[np.isin(order, pool)]
        held = [max(1, round(len(pool) * share)) if share else 0 for share in (val, test)]
        parts = np.split(pool, np.maximum([len(pool) - sum(held), len(pool) - held[1]], 0))
    else:
        at = np.array([place(file, data_seed) for file in layout.files])
        order = np.argsort(at, kind="stable")
        pool = order[np.isin(order, pool)]
        # testing first, so that another val_fraction leaves the test set as it is
        tested, validated, trained = np.split(pool, np.searchsorted(at[pool], [test, test + val]))
        parts = [trained, validated, tested]
    splits = dict(zip(SPLITS, parts, strict=True))
    for name, share in (("train", 1.0), ("val", val), ("test", test)):
        if (own == name).any() and name != "train":
            splits[name] = order[own[order] == name]
        elif share and not len(splits[name]):
            raise DataError(
                f"data.root={str(root)!r}: its {n} images leave none to {TO[name]} with"
                f" data.val_fraction={val_fraction}, data.test_fraction={test_fraction} and"
                f" data.data_seed={data_seed}; needs more images, other fractions or another seed"
            )
    labels = np.array(layout.labels)
    for k, name in enumerate(layout.classes):
        if not (labels[splits["train"]] == k).any():
            raise DataError(
                f"data.root={str(root)!r}: class {name} has no image to train on;"
                " needs more of its images in train"
            )
    return splits


def held_out(layout: Layout, parts: Mapping[str, np.ndarray]) -> list[str]:
    """Describe the splits that have no folder, if others have one."""
    new = [name for name in ("val", "test") if len(parts[name]) and name not in layout.splits]
    if not new or "train" not in layout.splits:
        return []
    return [f"data: no folder for {' and '.join(new)}: held out of train/ by data.{new[0]}_fraction"]


def check_fractions(val: float, test: float) -> None:
    """Raise DataError unless something is left to train on."""
    if val + test >= 1:
        raise DataError(
            f"data.val_fraction={val} and data.test_fraction={test}: leave none to train on;"
            " needs a sum below 1"
        )


# idx files ------------------------------------------------------------------------------------------------


def idx_folders(root: Path, official: str) -> list[Path]:
    """List the folders to search for idx files; own ones first, as ``root`` may be shared with other sets."""
    inside = (f"{official}/raw", official, *PLACES[official], ".") if official else (".", "raw")
    # An absolute path stands for itself; the user's own places come before it.
    return sorted((root / place for place in inside), key=lambda f: not f.is_relative_to(root))


def idx_parts(root: Path, official: str = "", prefix: str = "") -> list[tuple[Path, Path]]:
    """Find the files (images, labels) of the training and the test part in the first folder that has all.

    Raises:
        DataError: there is none; with the prefix of files that are there, if another one fits.
    """
    folders = idx_folders(root, official)
    for folder in folders:
        for test in ("t10k", "test"):
            stems = [[f"{prefix}{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
                     for part in ("train", test)]  # fmt: skip
            files = [[find_idx(folder, stem) for stem in pair] for pair in stems]
            if all(file for pair in files for file in pair):
                return [(pair[0], pair[1]) for pair in files]  # type: ignore[misc]
    key = f"data.root={str(root)!r}"
    if not official:
        ending = "train-images-idx3-ubyte"
        near = {f.name[: f.name.index(ending)]: f.name for at in folders for f in at.glob(f"*{ending}*")}
        if prefix not in near and (prefix or near):
            typed = f"data.prefix={prefix}" if prefix else key
            fix = f"data.prefix={min(near)} fits {near[min(near)]}" if near else "pass the files' own prefix"
            raise DataError(f"{typed}: no {prefix}{ending} in {root}; {fix}")
    kinds = ("images-idx3", "labels-idx1")
    names = ", ".join(f"{prefix}{part}-{kind}-ubyte[.gz]" for part in ("train", "t10k") for kind in kinds)
    raise DataError(
        f"{key}: no {official or 'idx files'} there; needs {names}, all in one of"
        f" {', '.join(map(str, folders))}" + ("; or set data.download=true" if official else "")
    )


def caption_file(image: Path) -> Path:
    """Return the file of an image's caption; DataError if there is none."""
    file = image.with_suffix(".txt")
    if not file.exists():
        raise DataError(f"data.root: {image} has no caption; write {file.name} beside it")
    return file


def missing_cifar(root: Path) -> DataError:
    """Return the error for a root without CIFAR-10's files, or with damaged ones."""
    return DataError(
        f"data.root={str(root)!r}: CIFAR-10 is missing or damaged there; needs the files"
        " cifar-10-batches-py/{data_batch_1 .. data_batch_5, test_batch, batches.meta};"
        " or set data.download=true"
    )


# before a run's directory is made -------------------------------------------------------------------------


def check_batch(batch_size: int, items: int) -> None:
    """Raise DataError for a batch larger than the training split of ``items``; up to ``REPEATS`` are fine.

    Batches run across epochs, so a batch may hold an item twice; Lightning's loader would cut it short.
    """
    if batch_size > max(items, REPEATS):
        raise DataError(
            f"data.batch_size={batch_size}: larger than the training split;"
            f" {items} is one step with all of its items"
        )


def check_val_size(val_size: int, items: int) -> None:
    """Raise DataError unless something is left of ``items`` to train on."""
    if not 0 <= val_size < items:
        raise DataError(f"data.val_size={val_size}: {items} items in train; needs 0 to {items - 1}")


def check_pixels(size: int) -> None:
    """Raise DataError for images of ``size`` x ``size`` beyond TRIPTYCH_MAX_PIXELS."""
    pixels = size * size
    if pixels > (most := limit("TRIPTYCH_MAX_PIXELS")):
        raise DataError(f"data.size={size}: {pixels} pixels an image, more than {most}; needs a smaller one")


def check_memory(key: str, items: int, numbers: int, width: int = 4) -> None:
    """Raise DataError if ``items`` of so many numbers, of ``width`` bytes, exceed this machine's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # a system that does not say
        return
    if (size := items * numbers * width) > memory:
        raise DataError(
            f"{key}={items}: takes {size / 2**30:,.0f} GiB, more than the {memory / 2**30:,.0f} GiB"
            " of this machine's memory; needs fewer items"
        )


def check_data_files(data: Mapping[str, Any]) -> None:
    """Check the part ``data`` of a configuration against the files that it names, without reading images.

    Of a class that is not ours nothing is known here.

    Raises:
        DataError: no such folder or files, images of which no split can be made, sizes beyond reason.
    """
    target = data.get("_target_")

    def number(key: str, default: Any) -> Any:  # what is none is refused where values are checked
        value = data.get(key, default)
        return value if isinstance(value, int | float) else default

    items: int | None = TRAINING.get(str(target))
    if target in FOLDERS:
        root = folder_path(data.get("root"))
        check_pixels(number("size", 32))
        layout = read_layout(root)
        shares = number("val_fraction", 0.1), number("test_fraction", 0.1), number("data_seed", None)
        items = len(split_files(layout, root, *shares)["train"])
        if target == CAPTIONED:
            for file in layout.files:
                caption_file(root / file)
    elif target in IDX:
        root = folder_path(data.get("root"))
        if not data.get("download"):
            images, _ = idx_parts(root, IDX[target], data.get("prefix") or "")[0]
            held = number("val_size", 5000)
            check_val_size(held, items := read_header(images, 3)[0])
            items -= held
    elif target == CIFAR[0]:
        root = folder_path(data.get("root"))
        if not data.get("download") and not (root / CIFAR[1]).is_dir():
            raise missing_cifar(root)
    elif isinstance(target, str) and target.startswith("triptych.data."):
        for name in ("train_size", "val_size", "test_size"):
            check_memory(f"data.{name}", number(name, 1), max(2, number("dim", 2)))
        items = number("train_size", items)
    if items is not None:
        check_batch(number("batch_size", 1), items)
