"""A folder of images."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import forked
from triptych.data import folder
from triptych.data.build import check_splits_match_declaration, fingerprint
from triptych.data.cache import item_number
from triptych.data.layout import hash_to_unit_interval
from triptych.errors import StorageError

from .helpers import image_folder, refused, save_images


def save(file, colour, size=(20, 12)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.fixture
def plain(tmp_path):
    save_images(tmp_path, 20)
    return tmp_path


def test_folder_splits_by_hash_and_reads_uint8_values(plain):
    data = image_folder(plain)
    at = [hash_to_unit_interval(Path(f"{i:02d}.png"), 0) for i in range(20)]
    order = sorted(range(20), key=at.__getitem__)
    red = {name: split.values[:][:, 0, 0, 0].tolist() for name, split in data.splits.items()}
    assert red["test"] == [i for i in order if at[i] < 0.1]
    assert red["test"] + red["val"] + red["train"] == order
    train = data.splits["train"]
    assert (
        train.values.shape == (len(red["train"]), 3, 8, 8) and train.values[:].dtype == torch.uint8
    )
    assert (train.values[:][:, 1] == 0).all() and (train.values[:][:, 2] == 100).all()
    assert train.labels is None and data.num_classes == 0


def test_num_workers_does_not_change_images(plain, monkeypatch, tmp_path):
    one = image_folder(plain)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "other"))
    three = image_folder(plain, num_workers=3)
    assert all(
        one.splits[name].values[:].equal(three.splits[name].values[:]) for name in one.splits
    )


def test_wide_image_is_center_cropped(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the middle third
    for i in range(3):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert (
        image_folder(tmp_path, val_fraction=0, test_fraction=0).splits["train"].values[:] == 200
    ).all()


def test_folder_names_are_classes(tmp_path):
    for name, colour in (("cat", 10), ("dog", 20), ("ant", 30)):
        for i in range(4):
            save(tmp_path / name / "deeper" / f"{i}.jpg", (colour,) * 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    data = image_folder(tmp_path, val_fraction=0, test_fraction=0)
    assert data.num_classes == 3 and sum(map(len, data.splits.values())) == 12
    for split in data.splits.values():
        colours = split.values[:][:, 0, 0, 0].tolist()
        assert [{30: 0, 10: 1, 20: 2}[v] for v in colours] == split.labels.tolist()


def test_single_folder_gives_no_classes(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", (i, 0, 0))
    data = image_folder(tmp_path, val_fraction=0, test_fraction=0)
    assert data.num_classes == 0 and data.splits["train"].labels is None


@pytest.mark.parametrize("content", [b"", b"nothing of an image", None])
def test_corrupt_image_is_refused_by_name(plain, content):
    file = plain / "07.png"
    if content is None:
        noise = np.random.RandomState(0).randint(256, size=(64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(file)
        content = file.read_bytes()[:3000]
    file.write_bytes(content)
    refused(lambda: image_folder(plain, num_workers=2), "data.root", str(file))


# groups
# -------------------------------------------------------------------------------------------


def test_images_of_a_group_stay_in_one_split(tmp_path):
    for patient in range(40):
        for view in range(1 + patient % 3):
            save(tmp_path / f"patient_{patient:02d}_{view}.png", (patient, view, 0))
    data = image_folder(tmp_path, group_by="_", val_fraction=0.2, test_fraction=0.3)
    seen = []
    for split in data.splits.values():
        patients = split.values[:][:, 0, 0, 0]
        same = patients[:, None] == patients
        assert torch.equal(split.groups[:, None] == split.groups, same)
        seen.append({*patients.tolist()})
    assert sum(map(len, seen)) == 40 and all(map(len, seen)), "no patient is in two splits"
    tested = len(data.splits["test"].groups.unique())
    assert data.description.endswith(f" test, test in {tested} groups")
    plain = image_folder(tmp_path, val_fraction=0.2, test_fraction=0.3)
    assert plain.splits["test"].groups is None and "groups" not in plain.description
    assert fingerprint(plain).data != fingerprint(data).data


def test_folders_are_groups(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", (i, 0, len(name)))
    groups = image_folder(tmp_path, group_by="folder", val_fraction=0).splits["test"].groups
    assert sorted(groups.unique(return_counts=True)[1].tolist()) == [2, 2]


def test_group_that_is_unknown_or_alone_is_refused(plain):
    refused(lambda: image_folder(plain, group_by="_"), "data.group_by='_'", "00.png")
    for i in range(3):
        save(plain / "train" / f"a_{i}.png", (i, 0, 0))
        save(plain / "test" / f"b_{i}.png", (i, 1, 0))
    for file in plain.glob("*.png"):
        file.unlink()
    data = image_folder(plain, group_by="_")
    refused(lambda: check_splits_match_declaration(data), "all items are of one group")


# the cache
# -------------------------------------------------------------------------------------------


def test_cache_avoids_reading_images_again(plain, monkeypatch):
    first = image_folder(plain)
    monkeypatch.setattr(folder, "read_image", None)
    again = image_folder(plain)
    assert again.splits["train"].values[:].equal(first.splits["train"].values[:])
    assert fingerprint(again).as_entries() == fingerprint(first).as_entries()
    with pytest.raises(TypeError):
        image_folder(plain, size=4)  # another size is another file


def test_fingerprint_of_cached_images_matches_item_number(plain):
    data = image_folder(plain)
    numbers = fingerprint(data).items["train"].tolist()
    assert numbers == [item_number(image) for image in data.splits["train"].values[:].numpy()]


def test_cache_is_renewed_when_image_changes(plain):
    before = image_folder(plain).splits["train"].values[:]
    Image.new("RGB", (20, 12), (255, 0, 100)).save(plain / "05.png")
    after = image_folder(plain).splits["train"].values[:]
    assert not before.equal(after) and (after[:, 0] == 255).any()


def test_failed_cache_build_leaves_no_file(plain, root):
    (plain / "07.png").write_bytes(b"nothing of an image")
    refused(lambda: image_folder(plain), "07.png")
    assert not list((root / "data").rglob("*.*"))


def decode_slowly(place: Path, log: Path) -> int:
    """Write a line for each image that is decoded, and return the number of items."""
    read = folder.read_image

    def counted(file, *how):
        with open(log, "a") as lines:
            lines.write(f"{file.name}\n")
        time.sleep(0.1)
        return read(file, *how)

    folder.read_image = counted
    return sum(len(split) for split in image_folder(place).splits.values())


def test_two_processes_that_start_together_decode_each_image_once(plain, tmp_path_factory):
    """torchrun starts all ranks of a node at once, a sweep its jobs."""
    log = tmp_path_factory.mktemp("decoded") / "log"
    both = [forked.start_call(decode_slowly, plain, log) for _ in range(2)]
    counts = [value() for value in both]
    assert len({*counts}) == 1, counts
    decoded = log.read_text().splitlines()
    assert len(decoded) == len({*decoded}) == counts[0]


def test_unwritable_cache_names_triptych_cache(plain, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="TRIPTYCH_CACHE"):
        image_folder(plain)


# kinds of images
# -------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled(tmp_path):
    """A ramp over all of 0 .. 65535 becomes a ramp over all of 0 .. 255, rounded."""
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)
    Image.fromarray(np.broadcast_to(ramp, (64, 64)).copy()).save(tmp_path / "ramp.png")
    (tmp_path / "ramp.pgm").write_bytes(
        b"P5 64 64 65535\n" + np.tile(ramp, 64).astype(">u2").tobytes()
    )
    for name in ("ramp.png", "ramp.pgm"):
        found = folder.read_image(tmp_path / name, 64, 1)[0, 0]
        assert np.abs(found - ramp / 257).max() <= 0.5


def test_sixteen_bit_transparent_level_uses_background(tmp_path):
    values = np.full((8, 8), 40000, np.uint16)
    values[:, :4] = 7
    Image.fromarray(values).save(tmp_path / "x.png", transparency=7)
    refused(lambda: folder.read_image(tmp_path / "x.png", 8, 1), "data.background=null")
    found = folder.read_image(tmp_path / "x.png", 8, 1, background=255)[0]
    assert (found[:, :4] == 255).all() and (found[:, 4:] == 156).all()


def test_thirty_two_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save(tmp_path / "x.tif")
    refused(lambda: folder.read_image(tmp_path / "x.tif", 8, 1), "x.tif", "32-bit", "16")


def test_transparent_image_needs_background(tmp_path):
    image = np.zeros((8, 8, 4), np.uint8)
    image[..., 0], image[:, 4:, 3] = 200, 255  # red; the left half lets everything through
    Image.fromarray(image).save(tmp_path / "x.png")
    refused(lambda: folder.read_image(tmp_path / "x.png", 8, 3), "data.background=null", "x.png")
    found = folder.read_image(tmp_path / "x.png", 8, 3, background=255)
    assert (found[:, 4, 1] == 255).all() and found[:, 4, 6].tolist() == [200, 0, 0]
    image[..., 3] = 255
    Image.fromarray(image).save(tmp_path / "opaque.png")
    assert folder.read_image(tmp_path / "opaque.png", 8, 3)[:, 0, 0].tolist() == [200, 0, 0]
