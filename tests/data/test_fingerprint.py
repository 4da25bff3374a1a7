"""A fingerprint depends on the data's content, not on where or when they were written."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data.batch import Split
from triptych.data.build import fingerprint
from triptych.data.digits import Digits
from triptych.data.layout import hash_to_unit_interval
from triptych.data.mixture import Mixture, Ring
from triptych.data.mnist import Mnist

from .helpers import image_folder, save_images, write_mnist


def folder(root, **keys):
    return image_folder(root, **{"test_fraction": 0.3, "val_fraction": 0.2} | keys)


def images(data) -> dict[str, set[int]]:
    """Return which images each split has: image i is (i, 0, 100) everywhere."""
    return {name: set(split.values[:][:, 0, 0, 0].tolist()) for name, split in data.splits.items()}


@pytest.fixture
def plain(tmp_path):
    save_images(tmp_path / "plain", 40)
    return tmp_path / "plain"


def of(data):
    data.setup()
    return fingerprint(data)


def test_folder_split_is_stable_when_images_are_added_or_removed(plain):
    before = images(folder(plain))
    assert all(before.values()) and sum(map(len, before.values())) == 40
    for i in range(40, 100):  # names before, between and after those that are there
        Image.new("RGB", (20, 12), (i, 0, 100)).save(plain / f"{'0' * (i % 3)}{i}x.png")
    for i in (3, 17, 30):
        (plain / f"{i:02d}.png").unlink()
    after = images(folder(plain))
    for name, there in before.items():
        assert there - {3, 17, 30} == after[name] & set(range(40)), name
        assert after[name] - set(range(40)), name  # the new ones are spread over all three


def test_hash_split_matches_fractions_and_depends_on_seed(tmp_path):
    at = np.array([hash_to_unit_interval(Path(f"class/{i}.png"), 0) for i in range(20000)])
    # Hashes are uniform up to three standard deviations of a binomial.
    assert abs((at < 0.1).mean() - 0.1) < 3 * (0.1 * 0.9 / 20000) ** 0.5
    other = np.array([hash_to_unit_interval(Path(f"class/{i}.png"), 1) for i in range(20000)])
    assert abs(((at < 0.1) & (other < 0.1)).mean() - 0.01) < 3 * (0.01 * 0.99 / 20000) ** 0.5


def test_hash_split_normalizes_unicode_names():
    assert hash_to_unit_interval(Path("caf\u00e9.png"), 0) == hash_to_unit_interval(
        Path("cafe\u0301.png"), 0
    )


def test_fingerprint_depends_on_contents_not_location(plain, tmp_path):
    first = fingerprint(folder(plain))
    shutil.copytree(plain, tmp_path / "copy", copy_function=shutil.copy)  # times differ
    os.utime(tmp_path / "copy" / "00.png", (1, 1))
    assert fingerprint(folder(tmp_path / "copy")).as_entries() == first.as_entries()
    file = plain / "07.png"
    size, stamp = file.stat().st_size, file.stat()
    Image.new("RGB", (20, 12), (201, 0, 100)).save(file)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == size  # size and mtime are unchanged
    other = fingerprint(folder(plain))
    assert other.data != first.data and other.split != first.split


def test_fingerprint_changes_with_images_size_and_split(plain):
    first = fingerprint(folder(plain))
    assert fingerprint(folder(plain, size=4)).data != first.data
    assert fingerprint(folder(plain, data_seed=1)).data != first.data  # judged by other images
    more = fingerprint(folder(plain, val_fraction=0.3))
    assert more.data == first.data and more.split != first.split
    (plain / "05.png").unlink()
    assert fingerprint(folder(plain)).data != first.data


def test_data_fingerprint_ignores_val_size():
    first, other = of(Digits()), of(Digits(val_size=0))
    assert first.data == other.data and first.split != other.split
    assert first.n == {"train": 1350, "val": 150, "test": 297}
    assert [len(first.items[name]) for name in first.n] == list(first.n.values())


def test_fingerprint_depends_on_labels(tmp_path):
    write_mnist(tmp_path / "a")
    write_mnist(tmp_path / "b")
    data = Mnist(tmp_path / "b", val_size=5)
    data.setup()
    assert fingerprint(data).as_entries() == of(Mnist(tmp_path / "a", val_size=5)).as_entries()
    split = data.splits["train"]
    split.labels[0] = (split.labels[0] + 1) % 10
    assert fingerprint(data).data != of(Mnist(tmp_path / "a", val_size=5)).data


def test_fingerprint_of_generated_data_is_their_parameters():
    ring = dict(modes=3, std=0.1, train_size=30, val_size=5, test_size=20)
    first = of(Ring(**ring))
    assert not first.items
    for other in ({"std": 0.2}, {"modes": 4}, {"data_seed": 1}, {"test_size": 21}):
        assert of(Ring(**ring | other)).data != first.data, other
    longer = of(Ring(**ring | {"train_size": 300}))
    assert longer.data == first.data and longer.split != first.split
    for same in ({"seed": 7}, {"batch_size": 5}, {"eval_batch_size": 5}):
        assert of(Ring(**ring | same)).as_entries() == first.as_entries()
    two = dict(weights=[0.5, 0.5], means=[[0.0], [1.0]], train_size=30, val_size=5, test_size=20)
    assert (
        of(Mixture(covariances=[0.1, 0.1], **two)).data
        != of(Mixture(covariances=[0.1, 0.2], **two)).data
    )


def test_fingerprint_of_generated_data_ignores_rounding():
    data = Ring(train_size=30, val_size=5, test_size=20)
    data.setup()
    first = fingerprint(data)
    data.splits["test"].values.mul_(1 + 1e-7)
    assert fingerprint(data).as_entries() == first.as_entries()


def test_fingerprint_of_60_000_images_is_fast():
    data = Digits()
    values = torch.randint(256, (60000, 1, 28, 28), dtype=torch.uint8)
    data.splits = {"train": Split(values, None, 256), "val": Split(values[:0], None, 256)}
    data.splits["test"] = Split(values[:100], None, 256)
    began = time.process_time()
    fingerprint(data)
    assert time.process_time() - began < 5  # in Python, an image at a time, it is a minute
