"""List an image folder: its splits, classes and what cannot be used, known without torch.

Top folders that are named as splits are splits, in the words of Hugging Face's imagefolder (datasets,
``data_files.py``), and classes lie beneath, as in torchvision's ``ImageFolder``; else two or more top folders
are classes, and a hash of each image's path splits them.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.errors import DataError
from triptych.files import walk

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


@dataclass(frozen=True)
class Layout:
    """Images under a root.

    Attributes:
        files: relative to the root, sorted.
        splits: of each file, "train", "val" or "test" by its top folder; "" where a hash is to decide.
        classes: sorted names, over all splits; empty: no labels.
        labels: of each file, its place in ``classes``; empty without classes.
    """

    files: list[Path]
    splits: list[str]
    classes: list[str]
    labels: list[int]


def list_images(root: Path) -> list[Path]:
    """List the images under ``root``, relative and sorted, without hidden and foreign folders."""

    def refuse(error: OSError) -> None:
        raise DataError(f"data.root: cannot read {error.filename}: {error.strerror}; fix its permissions")

    images: list[Path] = []
    for here, entries in walk(root, links=True, refuse=refuse):
        names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
        images += [(here / n).relative_to(root) for n in names if n.lower().endswith(ENDINGS)]
        hidden = {one for one in entries if one.name.startswith(".") or one.name in FOREIGN}
        entries[:] = [one for one in entries if one not in hidden and not _above(here / one.name)]
    return sorted(images, key=Path.as_posix)


def _above(folder: Path) -> bool:
    # a link to a folder that it lies in: its images would appear again and again
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def check_folder(root: Path) -> None:
    """Raise DataError unless ``root`` is a folder, whatever lies in it."""
    if not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        arrays = root.suffix in (".npy", ".npz")
        fix = "arrays need a class of your own, docs/own-code.md" if arrays else "needs one with images"
        raise DataError(f"data.root={str(root)!r}: {problem}; {fix}")


def read_layout(root: Path) -> Layout:
    """Return the images under ``root`` with their splits and classes, by the names of folders.

    DataError: no images; images both in folders and beside them; a folder named as a split beside others that
    are none; none to train on.
    """
    check_folder(root)
    key = f"data.root={str(root)!r}"
    files = list_images(root)
    if not files:
        raise DataError(f"{key}: no images there; they end in {', '.join(ENDINGS)}")
    tops = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    named = {top: SPLIT_OF[top.lower()] for top in tops if top.lower() in SPLIT_OF}
    if named:
        first, beside = next(iter(named)), [f"{top}/" for top in tops if top not in named]
        beside += [str(file) for file in files if len(file.parts) == 1]
        if beside:
            raise DataError(
                f"{key}: {first}/ is named as a split, but {beside[0]} lies beside it; put classes into"
                " train/CLASS/, or rename the folder"
            )
        if "train" not in named.values():
            raise DataError(f"{key}: {first}/ is there, but no train/; add it, or name {first} as data.root")
    splits = [named[file.parts[0]] if named else "" for file in files]
    depth = 1 if named else 0
    names = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
    loose = [file for file in files if len(file.parts) == depth + 1]
    if names and loose:
        raise DataError(f"{key}: {loose[0]} lies beside class folders; needs all images in folders, or none")
    classes = sorted(names) if len(names) > 1 else []
    numbers = {name: k for k, name in enumerate(classes)}
    labels = [numbers[file.parts[depth]] for file in files] if classes else []
    return Layout(files, splits, classes, labels)


def hidden_classes(layout: Layout, root: Path) -> str:
    """Return the line for folders that are no classes, as they lie in the only folder; "" for others."""
    depth = 1 if layout.splits[0] else 0
    inner = {file.parts[depth : depth + 2] for file in layout.files if len(file.parts) > depth + 2}
    if layout.classes or len(inner) < 2:
        return ""
    only = min(inner)[0]
    fix = "move them up" if depth else f"use data.root={str(root / only)!r}"
    return f"data.root={str(root)!r}: the {len(inner)} folders in {only}/ are no classes; {fix}"


def place(file: Path, data_seed: int) -> float:
    """Hash an image's path under the root to [0, 1), whatever other images there are."""
    # NFC: some file systems hand é back as e with an accent of its own
    name = unicodedata.normalize("NFC", file.as_posix())
    digest = hashlib.blake2b(f"{data_seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def split_files(
    layout: Layout, root: Path, val_fraction: float, test_fraction: float, data_seed: int
) -> "dict[str, np.ndarray]":
    """Split ``layout.files`` by their folders, else by ``place``, in whose order each split is.

    A split without a folder is held out of train/ by its fraction. DataError: a split that is to have items
    has none, or a class has none to train on.
    """
    if val_fraction + test_fraction >= 1:
        both = f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}"
        raise DataError(f"{both}: leave none to train on; needs a sum below 1")
    import numpy as np  # not for who only checks a configuration

    own = np.array(layout.splits)
    val = 0.0 if "val" in layout.splits else val_fraction
    test = 0.0 if "test" in layout.splits else test_fraction
    at = np.array([place(file, data_seed) for file in layout.files])
    order = np.argsort(at, kind="stable")
    pool = order[np.isin(own[order], ("", "train"))]
    # testing first, so that another val_fraction leaves the test set as it is
    tested, validated, trained = np.split(pool, np.searchsorted(at[pool], [test, test + val]))
    splits = {"train": trained, "val": validated, "test": tested}
    for name, share in (("train", 1.0), ("val", val), ("test", test)):
        if (own == name).any() and name != "train":
            splits[name] = order[own[order] == name]
        elif share and not len(splits[name]):
            raise DataError(
                f"data.root={str(root)!r}: its {len(own)} images leave none for {name} with"
                f" data.val_fraction={val_fraction}, data.test_fraction={test_fraction} and"
                f" data.data_seed={data_seed}; needs more images, other fractions or another seed"
            )
    trained_on = {layout.classes[layout.labels[i]] for i in splits["train"]} if layout.classes else set()
    if lost := [name for name in layout.classes if name not in trained_on]:
        problem = f"class {lost[0]} has no image to train on"
        raise DataError(f"data.root={str(root)!r}: {problem}; needs more of its images in train")
    return splits


def caption_file(image: Path) -> Path:
    """Return the file of an image's caption; DataError if there is none."""
    file = image.with_suffix(".txt")
    if not file.exists():
        raise DataError(f"data.root: {image} has no caption; write {file.name} beside it")
    return file
