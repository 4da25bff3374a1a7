"""Splits, classes and unusable files of a data folder are known before torch is imported."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data import shapes, source
from triptych.data.base import SyntheticData
from triptych.data.build import fingerprint
from triptych.data.mixture import Ring
from triptych.data.mnist import Mnist
from triptych.data.source import check_data_files
from triptych.data.text import Words
from triptych.run.execute import execute
from triptych.run.items import group_values, read_items
from triptych.run.read import read_run
from triptych.run.result import result_line
from triptych.study.compare import compare
from triptych.study.details import _provenance
from triptych.study.results import results

from .helpers import image_folder, items, refused, save_images, write_idx, write_mnist


def save(root, *files):
    """Save images to files, all of different colours."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(str(file).encode(), digest_size=12).digest()
        pixels = np.frombuffer(digest, np.uint8).reshape(2, 2, 3)
        Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(root / file)


def tree(root, **splits):
    """``tree(root, train={"cat": 4, "dog": 4})``: write so many images into each folder.

    "" is the split's own folder.
    """
    for split, classes in splits.items():
        save(root, *[f"{split}/{name}/{i}.png" for name, n in classes.items() for i in range(n)])


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


# splits
# ------------------------------------------------------------------------------------------------


def test_train_val_test_folders_are_splits_with_class_subfolders(tmp_path):
    """As in torchvision's and Hugging Face's image folders, no image of test/ is trained on."""
    tree(tmp_path, train={"cat": 8, "dog": 8}, val={"cat": 2, "dog": 3}, test={"cat": 4, "dog": 1})
    data = image_folder(tmp_path)
    assert sizes(data) == {"train": 16, "val": 5, "test": 5}
    assert data.num_classes == 2 and list(data.class_names) == ["cat", "dog"]
    assert data.splits["test"].labels.tolist().count(0) == 4
    alone = image_folder(tmp_path / "test", val_fraction=0, test_fraction=0).splits["train"]
    assert len(items(alone)) == 5 and items(data.splits["test"]) == items(alone)


@pytest.mark.parametrize(
    "names", ["Train Val Test", "TRAIN VALID TEST", "training validation testing"]
)
def test_split_folder_names_follow_hugging_face(tmp_path, names):
    """Split names are those of Hugging Face (datasets, data_files.py), in any case."""
    tree(tmp_path, **dict(zip(names.split(), ({"": 6}, {"": 3}, {"": 2}), strict=True)))
    data = image_folder(tmp_path)
    assert sizes(data) == {"train": 6, "val": 3, "test": 2} and data.num_classes == 0


def test_a_split_without_a_folder_is_held_out_of_train(tmp_path):
    tree(tmp_path, train={"cat": 40, "dog": 40}, test={"cat": 4, "dog": 4})
    data = image_folder(tmp_path, val_fraction=0.2)
    found = sizes(data)
    assert found["test"] == 8 and found["train"] + found["val"] == 80 and 4 < found["val"] < 32
    tree(tmp_path / "two", train={"cat": 40}, valid={"cat": 9})
    found = sizes(image_folder(tmp_path / "two", test_fraction=0.2))
    assert found["val"] == 9 and 0 < found["test"] < 20 and found["train"] + found["test"] == 40


def test_label_numbers_are_those_of_train_in_every_split(tmp_path):
    tree(tmp_path, train={"ant": 3, "bee": 3, "cat": 3}, val={"cat": 2}, test={"bee": 2})
    data = image_folder(tmp_path)
    assert [set(s.labels.tolist()) for s in data.splits.values()] == [{0, 1, 2}, {2}, {1}]


AMBIGUOUS = {
    "a class beside": (("train/0.png", "test/0.png", "cat/0.png"), ("train/", "cat/")),
    "an image beside": (("train/0.png", "test/0.png", "7.png"), ("train/", "7.png")),
    "no train": (("val/0.png", "test/0.png"), ("train/",)),
    "no class in test": (("train/a/0.png", "train/b/0.png", "test/0.png"), ("test/0.png",)),
}


@pytest.mark.parametrize("files,words", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_folders_are_refused(tmp_path, files, words):
    save(tmp_path, *files)
    refused(lambda: image_folder(tmp_path, val_fraction=0), "data.root", *words)


# what is left out
# --------------------------------------------------------------------------------------


def test_hidden_and_foreign_folders_are_no_classes(tmp_path):
    save(tmp_path, *[f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)])
    save(tmp_path, "__MACOSX/cat/0.png", ".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0.png")
    save(tmp_path, "@eaDir/0.png")
    data = image_folder(tmp_path, val_fraction=0, test_fraction=0)
    assert list(data.class_names) == ["cat", "dog"] and sum(sizes(data).values()) == 10


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    """Otherwise each image would appear forty times, in train and in test."""
    save(tmp_path, *[f"{i}.png" for i in range(5)])
    (tmp_path / "again").symlink_to(tmp_path)
    assert sum(sizes(image_folder(tmp_path, val_fraction=0, test_fraction=0)).values()) == 5


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    save(tmp_path, *[f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)])
    scan = os.scandir

    def locked(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    refused(lambda: image_folder(tmp_path), "data.root", "dog", "Permission denied")


# what is said of it
# ------------------------------------------------------------------------------------


def test_data_description_lists_classes_shape_and_sizes(tmp_path):
    tree(tmp_path, train={"cat": 4, "dog": 3, "owl": 1}, val={"cat": 2}, test={"owl": 2})
    said = image_folder(tmp_path, channels=1).description
    assert said == "folder, 3 classes (cat, dog, owl), 8x8x1, 8 train / 2 val / 2 test"
    ring = Ring(train_size=30, val_size=0, test_size=5)
    ring.setup()
    assert ring.description == "ring, 8 classes, 2 numbers an item, 30 train / 0 val / 5 test"


def test_identical_images_in_train_and_test_are_counted(tmp_path):
    tree(tmp_path, train={"": 9}, val={"": 3}, test={"": 4})
    for i in range(2):
        os.link(tmp_path / f"train/{i}.png", tmp_path / f"test/copy{i}.png")
    data = image_folder(tmp_path)
    record = fingerprint(data).as_entries()
    assert record["shared"] == {"test": 2}
    assert record["description"] == data.description
    ring = Ring(train_size=30, val_size=5, test_size=5)
    ring.setup()
    assert "shared" not in fingerprint(ring).as_entries()


def test_run_prints_and_records_data_and_leakage(root, prepared, capsys):
    tree(
        root / "pets",
        train={"cat": 9, "dog": 9},
        val={"cat": 2, "dog": 2},
        test={"cat": 3, "dog": 3},
    )
    os.link(root / "pets/train/cat/0.png", root / "pets/test/cat/copy.png")
    line = "folder, 2 classes (cat, dog), 8x8x3, 18 train / 4 val / 7 test"
    run = prepared("data=folder", f"data.root={root / 'pets'}", "data.size=8", "data.batch_size=4")
    summary = execute(run)
    said = capsys.readouterr()
    assert f"data: {line}\n" in said.out
    leak = "data: 1 of the 7 test items are identical to items in train (leakage)"
    assert leak in said.err and leak in (run / "train.log").read_text()
    data = summary["data"]
    assert (
        data["description"] == line
        and data["classes"] == ["cat", "dog"]
        and data["shared"] == {"test": 1}
    )
    shown = dict(_provenance(read_run(run.path), run.provenance))
    assert shown["data"] == f"{line}; 1 test items are also in train"
    (comparison,) = compare([read_run(run.path)])
    assert [note for note in comparison.notes if "leakage" in note] == [
        "1 of the test items are identical to items in train: bounds on them are too low (leakage)."
    ]
    (row,) = results([read_run(run.path)])
    assert (row["test_items_in_train"], row["val_items_in_train"]) == ("1", "0")


def test_run_records_groups_of_test_items_and_the_report_states_them(root, prepared):
    names = [f"film{film}_{frame}.png" for film in range(12) for frame in range(4)]
    save(root / "films" / "train", *names)
    save(root / "films" / "test", *[name.replace("film", "other") for name in names[:20]])
    keys = ("data=folder", f"data.root={root / 'films'}", "data.group_by=_", "data.size=8")
    run = prepared(*keys, "data.batch_size=4")
    summary = execute(run)
    bound, found = summary.test["bpd"], read_items(run.path)
    assert (bound.n, bound.groups, len({*found.group})) == (20, 5, 5)
    values = group_values(found.total, found.group)
    assert bound.stderr == pytest.approx(values.std(ddof=1) / 5**0.5)
    assert "n = 20 in 5 groups)" in result_line(summary)
    (comparison,) = compare([read_run(run.path)])
    assert comparison.tested == "20 test items in 5 groups"
    (row,) = results([read_run(run.path)])
    assert row["test/bpd_groups"] == 5 and row["test/bpd_n"] == 20


class Few(SyntheticData):
    name, shape = "few", (2,)

    def draw(self, n, generator):
        return torch.randn(n, 2, generator=generator), None


# before torch
# ------------------------------------------------------------------------------------------

FOLDER = {"_target_": "triptych.data.folder.ImageFolder"}


def check(**keys):
    check_data_files(
        FOLDER | {k: str(v) if isinstance(v, os.PathLike) else v for k, v in keys.items()}
    )


def test_bad_roots_are_refused_before_torch(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    refused(lambda: check(root=None), "data.root: not set; pass the folder of the data")
    for root in (tmp_path / "missing", file, tmp_path / "empty", tmp_path / "texts"):
        refused(lambda r=root: check(root=r), "data.root=")
    save_images(tmp_path / "fine", 30)
    check(root=tmp_path / "fine")


def test_bad_sizes_of_a_folder(tmp_path):
    save_images(tmp_path, 30)
    halves = {"val_fraction": 0.5, "test_fraction": 0.5}
    refused(lambda: image_folder(tmp_path, **halves), "data.val_fraction")
    refused(lambda: image_folder(tmp_path, size=100_000), "data.size=100000")


@pytest.mark.parametrize("name", ["Mnist", "FashionMnist"])
def test_check_data_files_refuses_missing_idx_files(tmp_path, name, monkeypatch):
    monkeypatch.setitem(source.PLACES, "FashionMNIST", ())
    keys = {"_target_": f"triptych.data.mnist.{name}", "root": tmp_path, "val_size": 6}
    refused(lambda: check(**keys), "data.root=", "train-images-idx3-ubyte")
    check(**keys, download=True)
    write_mnist(tmp_path)
    check(**keys)


def test_mnist_refuses_unequal_numbers_of_images_and_labels(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(29))
    refused(lambda: Mnist(root=tmp_path, val_size=5).load(), str(labels), "30", "29")


def test_cifar_files_that_are_missing(tmp_path):
    cifar = {"_target_": "triptych.data.cifar10.Cifar10", "root": tmp_path}
    refused(lambda: check(**cifar), "data.root=", "cifar-10-batches-py", "data.download=true")
    check(**cifar, download=True)
    check(_target_="lab.data.Points", root=None)  # somebody's own: its class knows


# workers
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 5])
def test_num_workers_does_not_change_training_batches(first):
    loaders = []
    for workers in (0, 3):
        data = Few(train_size=50, batch_size=16, num_workers=workers)
        data.setup()
        loader = data.train_dataloader()
        loader.first = lambda: first
        loaders.append(iter(loader))
    for _ in range(9):  # across epochs
        one, other = (next(loader) for loader in loaders)
        assert one.x.equal(other.x) and one.index.equal(other.index)


def test_shapes_with_too_few_distinct_pictures_are_refused(monkeypatch):
    """Otherwise drawing would never end if the test set had every possible picture."""
    monkeypatch.setattr(
        shapes, "render_image", lambda what, random: np.zeros((3, 16, 16), np.uint8)
    )
    data = shapes.Shapes(encoder=Words(), train_size=2, val_size=2, test_size=2)
    refused(data.setup, "data.val_size=2", "data.test_size")
