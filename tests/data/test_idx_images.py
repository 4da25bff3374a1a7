"""MNIST, Fashion-MNIST and CIFAR-10, from files that the tests make."""

import numpy as np
import pytest
import torch

from triptych.data import source
from triptych.data.cifar10 import Cifar10
from triptych.data.mnist import FashionMnist, Mnist, read_idx

from .helpers import refused, write_idx, write_mnist


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch):
    """Hide dataset-fashion-mnist, which the machine may have."""
    monkeypatch.setitem(source.PLACES, "FashionMNIST", ("fashion-mnist",))


def ready(kind, root, **keys):
    data = kind(root, **{"val_size": 6} | keys)
    data.setup()
    return data


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_read_idx_reads_plain_and_gzip_files(tmp_path, ending):
    array = np.random.RandomState(0).randint(256, size=(5, 3, 4)).astype(np.uint8)
    write_idx(tmp_path / f"a{ending}", array)
    assert np.array_equal(read_idx(tmp_path / f"a{ending}", 3), array)


LAYOUTS = [(Mnist, ".", ""), (Mnist, "MNIST/raw", ".gz"), (FashionMnist, "fashion-mnist", ".gz")]


@pytest.mark.parametrize("kind,place,ending", LAYOUTS)
def test_mnist_layouts_give_permuted_splits(tmp_path, kind, place, ending):
    write_mnist(tmp_path / place, ending=ending)
    splits = ready(kind, tmp_path).splits
    order = np.random.RandomState(0).permutation(30)
    first = {name: split.values[:, 0, 0, 0].tolist() for name, split in splits.items()}
    assert first["train"] == order[:24].tolist() and first["val"] == order[24:].tolist()
    assert sorted(first["test"]) == list(range(100, 107))
    for name, split in splits.items():
        assert split.labels.tolist() == [k % 100 % 10 for k in first[name]]
        assert split.values.shape[1:] == (1, 28, 28) and split.values.dtype == torch.uint8
        assert split.levels == 256


def test_fashion_mnist_is_read_from_debian_package(tmp_path, monkeypatch):
    write_mnist(tmp_path / "system")
    monkeypatch.setitem(source.PLACES, "FashionMNIST", ("fashion-mnist", str(tmp_path / "system")))
    assert len(ready(FashionMnist, tmp_path / "none").splits["test"]) == 7
    # The user's own files take precedence.
    write_mnist(tmp_path / "mine", test=3)
    assert len(ready(FashionMnist, tmp_path / "mine").splits["test"]) == 3


def test_mnist_and_fashion_mnist_share_a_root(tmp_path):
    write_mnist(tmp_path, test=3)
    write_mnist(tmp_path / "FashionMNIST/raw", test=5)
    assert len(ready(FashionMnist, tmp_path).splits["test"]) == 5
    assert len(ready(Mnist, tmp_path).splits["test"]) == 3


def test_val_size_must_leave_training_items(tmp_path):
    write_mnist(tmp_path)
    assert len(ready(Mnist, tmp_path, val_size=0).splits["train"]) == 30
    for value in (30, 31):
        refused(lambda v=value: ready(Mnist, tmp_path, val_size=v), f"data.val_size={value}", "29")


@pytest.mark.parametrize("kind", [Mnist, FashionMnist, Cifar10])
def test_missing_data_files_suggest_download(tmp_path, kind):
    for root in (tmp_path, tmp_path / "missing"):
        refused(lambda r=root: ready(kind, r), "data.root", str(root), "data.download=true")
    refused(lambda: kind(None), "data.root: not set; pass the folder of the data")


def test_missing_idx_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused(lambda: ready(Mnist, tmp_path), "data.root", "t10k-labels-idx1-ubyte")


PLAIN, ZIPPED = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"
DAMAGES = {
    "cut": (PLAIN, lambda data: data[:-1]),
    "more": (PLAIN, lambda data: data + b"x"),
    "magic": (PLAIN, lambda data: b"\x00\x00\x08\x01" + data[4:]),
    "type": (PLAIN, lambda data: b"\x00\x00\x0d\x03" + data[4:]),
    "all": (PLAIN, lambda data: b""),
    "count": (PLAIN, lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:]),
    "none": (PLAIN, lambda data: data[:4] + bytes(4) + data[8:]),
    "no gzip": (ZIPPED, lambda data: b"no gzip"),
    "broken gzip": (ZIPPED, lambda data: data[:40] + b"abc" + data[43:]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_idx_file_is_refused(tmp_path, damage):
    name, change = damage
    write_mnist(tmp_path, ending=(tmp_path / name).suffix)
    file = tmp_path / name
    file.write_bytes(change(file.read_bytes()))
    refused(lambda: ready(Mnist, tmp_path), "data.root", str(file))


class FakeCifar10:
    def __init__(self, root, train, download):
        assert not download
        n, start = (20, 0) if train else (5, 100)
        self.data = np.zeros((n, 32, 32, 3), np.uint8)
        self.data[..., 0] = np.arange(start, start + n)[:, None, None]
        self.data[:, 0, 1, 2] = 7
        self.targets = [i % 10 for i in range(n)]


def test_cifar10_splits(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar10)
    (tmp_path / "cifar-10-batches-py").mkdir()
    splits = ready(Cifar10, tmp_path, val_size=4).splits
    order = np.random.RandomState(0).permutation(20)
    red = {name: split.values[:, 0, 5, 5].tolist() for name, split in splits.items()}
    assert red["train"] == order[:16].tolist() and red["val"] == order[16:].tolist()
    assert sorted(red["test"]) == list(range(100, 105))
    for name, split in splits.items():
        assert (split.values[:, 2, 0, 1] == 7).all()
        assert split.values[:, 1:].sum() == 7 * len(split)
        assert split.labels.tolist() == [k % 100 % 10 for k in red[name]]


@pytest.mark.parametrize("kind", [Mnist, Cifar10])
def test_failed_download_is_one_line(tmp_path, monkeypatch, kind):
    def offline(*args, **keys):
        raise OSError("no network")

    monkeypatch.setattr(f"torchvision.datasets.{kind.name.upper()}", offline)
    refused(
        lambda: ready(kind, tmp_path, download=True), f"data.root={str(tmp_path)!r}: no network"
    )


def test_damaged_cifar10_is_one_line(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    refused(lambda: ready(Cifar10, tmp_path), "data.root=", "not found or corrupted")
