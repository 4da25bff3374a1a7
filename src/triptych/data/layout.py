"""Find the images, splits and classes of an image folder, without torch.

Top folders that are named as splits are splits; the names are those of Hugging Face's imagefolder
(datasets, ``data_files.py``). The folders in them are classes, as in torchvision's ``ImageFolder``.
Otherwise two or more top folders are classes, and a hash of each image's path decides its split.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from os import DirEntry
from pathlib import Path

import numpy as np

from triptych.errors import DataError
from triptych.files import walk

SPLITS = {  # {split: names of its folder}
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_BY_FOLDER_NAME = {word: split for split, words in SPLITS.items() for word in words}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FOREIGN = ("__MACOSX", "@eaDir")  # folders that archives and file servers add


@dataclass(frozen=True)
class Layout:
    """The images of a folder, with their splits and classes.

    Attributes:
        files: paths relative to the folder, sorted.
        splits: the split of each file, by its top folder; "" if the hash decides.
        classes: sorted names of the classes in all splits; empty if there are none.
        labels: the index in ``classes`` of each file's class; empty without classes.
    """

    files: list[Path]
    splits: list[str]
    classes: list[str]
    labels: list[int]


def list_images(root: Path) -> list[Path]:
    """List the images under ``root``, relative and sorted, without hidden and foreign folders."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"data.root: cannot read {error.filename}: {error.strerror}; fix its permissions"
        )

    images: list[Path] = []
    for folder, entries in walk(root, follow_links=True, on_error=refuse):
        entries[:] = [entry for entry in entries if _is_visible(folder, entry)]
        for entry in entries:
            if not entry.is_dir() and entry.name.lower().endswith(ENDINGS):
                images.append((folder / entry.name).relative_to(root))
    return sorted(images, key=Path.as_posix)


def _is_visible(folder: Path, entry: DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name in FOREIGN:
        return False
    # Skip a link to a folder that contains it, because its images would appear repeatedly.
    return not (entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()))


def check_folder(root: Path) -> None:
    """Raise DataError unless ``root`` is a folder."""
    if not root.is_dir():
        raise DataError(
            f"data.root={str(root)!r}: no such folder; pass a folder with images; for arrays see "
            "docs/own-code.md"
        )


def read_layout(root: Path) -> Layout:
    """Return the images under ``root`` with their splits and classes, by the names of folders.

    Raises:
        DataError: there are no images; only some of the top folders are named as splits, or none is
            "train"; or images lie both in class folders and beside them.
    """
    check_folder(root)
    key = f"data.root={str(root)!r}"
    files = list_images(root)
    if not files:
        raise DataError(f"{key}: no images there; their names must end in {', '.join(ENDINGS)}")
    splits = [_split_named_by_folder(file) for file in files]
    depth = 0  # number of folders above the classes
    if any(splits):
        depth = 1
        _check_split_folders(key, files, splits)
    folders = [_class_folder(file, depth) for file in files]
    classes = sorted(set(folders))
    if len(classes) == 1:  # a single folder is no class
        return Layout(files, splits, [], [])
    if "" in classes:
        loose = files[folders.index("")]
        raise DataError(
            f"{key}: {loose} is in no class folder; put all images into class folders, or none"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return Layout(files, splits, classes, [numbers[folder] for folder in folders])


def _split_named_by_folder(file: Path) -> str:
    """Return the split that a file's top folder names; "" if it names none."""
    return "" if len(file.parts) == 1 else SPLIT_BY_FOLDER_NAME.get(file.parts[0].lower(), "")


def _class_folder(file: Path, depth: int) -> str:
    """Return a file's folder at this depth; "" if the file lies above that depth."""
    return "" if len(file.parts) == depth + 1 else file.parts[depth]


def _check_split_folders(key: str, files: Sequence[Path], splits: Sequence[str]) -> None:
    if "" in splits:
        file = files[splits.index("")]
        raise DataError(
            f"{key}: {file} is in no split folder (train, val, test); put it into one, as "
            "train/CLASS/, or rename folders that are not splits"
        )
    if "train" not in splits:
        top = files[0].parts[0]
        raise DataError(f"{key}: has {top}/ but no train/; add train/, or pass {top}/ as data.root")


def hash_to_unit_interval(file: Path, data_seed: int) -> float:
    """Hash an image's path under the root to [0, 1), independently of other images."""
    # Normalize to NFC, as some file systems return é as e with a combining accent.
    name = unicodedata.normalize("NFC", file.as_posix())
    path = f"{data_seed}/{name}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(path, digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def group_files(files: Sequence[Path], group_by: str) -> list[str]:
    """Return the name of each image's group.

    With "folder", the images of one folder are a group. With any other text, images are a group if
    their names are equal up to the last occurrence of the text: ``patient07_1.png`` and
    ``patient07_2.png`` with "_".

    Raises DataError for a name without that text, or with nothing before it.
    """
    if group_by == "folder":
        return [file.parent.as_posix() for file in files]
    names = [file.stem.rpartition(group_by)[0] for file in files]
    if "" in names:
        raise DataError(
            f"data.group_by={group_by!r}: {files[names.index('')]} has no text before "
            f"{group_by!r} in its name; rename it, or set data.group_by=folder"
        )
    return names


def split_files(
    layout: Layout,
    val_fraction: float,
    test_fraction: float,
    data_seed: int,
    groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Assign files to splits by folders or by hashes; return {split: indices, sorted by hash}.

    A held-out split without a folder is taken out of train/ by its fraction. With ``groups``, the
    group of each file, the hash of the group decides, so that such splits never divide a group.
    """
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: no items "
            "are left for training; their sum must be below 1"
        )
    file_hashes = np.array([hash_to_unit_interval(file, data_seed) for file in layout.files])
    order = np.argsort(file_hashes, kind="stable")
    folders = np.array(layout.splits)[order]
    pool = order[np.isin(folders, ("", "train"))]
    group_hashes = np.array(
        [hash_to_unit_interval(Path(name), data_seed) for name in groups or layout.files]
    )
    fractions = {"val": val_fraction, "test": test_fraction}
    splits_with_folder = fractions.keys() & {*layout.splits}  # splits that have a folder
    fractions |= dict.fromkeys(splits_with_folder, 0.0)
    # Take the test items first, so that they do not depend on val_fraction.
    ends = np.cumsum([fractions["test"], fractions["val"]])
    part = np.searchsorted(ends, group_hashes[pool], side="right")
    splits = {"train": pool[part == 2], "val": pool[part == 1], "test": pool[part == 0]}
    for name in splits_with_folder:
        splits[name] = order[folders == name]
    return splits
