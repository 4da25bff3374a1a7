"""A folder of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.data.folder import ImageFolder

from .helpers import refused, save_images


def save(file, colour, size=(20, 12)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.fixture
def plain(tmp_path):
    save_images(tmp_path, 20)
    return tmp_path


def ready(root, **keys):
    data = ImageFolder(root, **{"size": 8} | keys)
    data.setup()
    return data


def test_splits_and_values(plain):
    data = ready(plain, val_fraction=0.1, test_fraction=0.2)
    order = np.random.RandomState(0).permutation(20).tolist()
    red = {name: split.values[:, 0, 0, 0].tolist() for name, split in data.splits.items()}
    assert red == {"train": order[:14], "val": order[14:16], "test": order[16:]}
    train = data.splits["train"]
    assert train.values.shape == (14, 3, 8, 8) == (14, *data.shape) and train.values.dtype == torch.uint8
    assert (train.values[:, 1] == 0).all() and (train.values[:, 2] == 100).all()
    assert train.labels is None and data.num_classes == 0


def test_threads_change_nothing(plain):
    one, three = ready(plain), ready(plain, num_workers=3)
    assert all(one.splits[name].values.equal(three.splits[name].values) for name in one.splits)


def test_grey(plain):
    data = ready(plain, channels=1)
    assert data.shape == (1, 8, 8) == data.splits["train"].values.shape[1:]


def test_centre_is_cut_out(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the middle third
    for i in range(3):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert (ready(tmp_path).splits["train"].values == 200).all()


def test_classes(tmp_path):
    for name, colour in (("cat", 10), ("dog", 20), ("ant", 30)):
        for i in range(4):
            save(tmp_path / name / "deeper" / f"{i}.jpg", (colour,) * 3)
    (tmp_path / "empty").mkdir()
    save(tmp_path / ".hidden" / "x.png", (0, 0, 0))
    (tmp_path / "notes.txt").write_text("no image")
    data = ready(tmp_path)
    assert data.num_classes == 3 and sum(map(len, data.splits.values())) == 12
    for split in data.splits.values():
        assert [{30: 0, 10: 1, 20: 2}[v] for v in split.values[:, 0, 0, 0].tolist()] == split.labels.tolist()


def test_one_folder_is_no_class(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", (i, 0, 0))
    data = ready(tmp_path)
    assert data.num_classes == 0 and data.splits["train"].labels is None


def test_loose_image_beside_classes(tmp_path):
    for name in ("a/0.png", "b/0.png", "c.png"):
        save(tmp_path / name, (0, 0, 0))
    refused(lambda: ready(tmp_path), "data.root", "c.png")


@pytest.mark.parametrize("content", [b"", b"nothing of an image", None])
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_file(plain, content, workers):
    file = plain / "07.png"
    if content is None:
        noise = np.random.RandomState(0).randint(256, size=(64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(file)
        content = file.read_bytes()[:3000]
    file.write_bytes(content)
    refused(lambda: ready(plain, num_workers=workers), "data.root", str(file))


def test_no_images(tmp_path):
    refused(lambda: ready(tmp_path), "data.root", str(tmp_path), "no images")
    refused(lambda: ready(tmp_path / "missing"), "data.root", "missing", "no such folder")
    (tmp_path / "file").write_text("")
    refused(lambda: ready(tmp_path / "file"), "data.root", "no such folder")
    refused(lambda: ImageFolder(None), "data.root=None")


def test_too_few_images(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", (i, 0, 0))
    assert [len(split) for split in ready(tmp_path).splits.values()] == [1, 1, 1]
    (tmp_path / "2.png").unlink()
    refused(lambda: ready(tmp_path), "data.root", "2 images", "data.val_fraction=0.1")
    assert len(ready(tmp_path, val_fraction=0).splits["train"]) == 1


@pytest.mark.parametrize(
    "key,value",
    [
        ("channels", 2),
        ("size", 0),
        ("val_fraction", 1),
        ("test_fraction", -0.1),
        ("val_fraction", "a"),
        ("num_workers", -1),
    ],
)
def test_bad_keys(key, value):
    refused(lambda: ImageFolder("anywhere", **{key: value}), f"data.{key}={value!r}")
