"""Captioned shapes: captions describe their pictures, and splits do not overlap."""

from itertools import product

import numpy as np
import pytest
import torch

from triptych.data import shapes
from triptych.data.shapes import ATTRIBUTES, COMBINATIONS, Shapes, attributes_of
from triptych.data.text import Words

from .helpers import items

SIZES = {"train_size": 300, "val_size": 60, "test_size": 150}


def ready(**keys):
    data = Shapes(encoder=Words(), **SIZES | keys)
    data.setup()
    return data


@pytest.fixture(scope="module")
def data():
    return ready()


def seen_in(picture):
    """Find a picture's attributes without the drawing code: colour, side, number, outline.

    The picture is (3, 16, 16).
    """
    ground = int(np.median(picture))
    there = (picture != ground).any(0)
    bright = picture[:, there].max(1) > 3  # the background is darker
    colours = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    lines = there.any(1)
    count = int(lines[0]) + int((lines[1:] & ~lines[:-1]).sum())
    first = there[lines.argmax() :][: (~lines[lines.argmax() :]).argmax() or None]
    widths = first.sum(1)
    round_or_not = "circle" if widths[0] == widths[-1] else "triangle"
    shape = "square" if (widths == widths.max()).all() else round_or_not
    left = there[:, :8].any()
    assert left != there[:, 8:].any()
    side = "left" if left else "right"
    return shape, colours[tuple(bright.astype(int))], ("one", "two", "three")[count - 1], side


def test_draw_picture_shows_its_attributes():
    random = np.random.RandomState(0)
    for what in COMBINATIONS * 3:
        named = tuple(values[k] for values, k in zip(ATTRIBUTES.values(), what, strict=True))
        assert seen_in(shapes.render_image(what, random)) == named


def test_shapes_caption_names_exactly_its_attributes():
    for what, phrase, place, article in product(COMBINATIONS, range(3), range(3), (False, True)):
        said = attributes_of(shapes.compose_caption(what, phrase, place, article))
        assert said == dict(zip(ATTRIBUTES if place else list(ATTRIBUTES)[:3], what, strict=False))


def test_shapes_images_labels_and_captions_agree(data):
    for name, split in data.splits.items():
        found = data.attributes(split.labels).tolist()
        for picture, what, text in zip(
            split.values.numpy(), found, data.captions[name], strict=True
        ):
            named = seen_in(picture)
            assert attributes_of(text).items() <= dict(zip(ATTRIBUTES, what, strict=True)).items()
            assert [
                values.index(n) for values, n in zip(ATTRIBUTES.values(), named, strict=True)
            ] == what


def test_low_condition_is_2x2_mean_rounded_to_level(data):
    split = data.splits["test"]
    low = (split.condition.parts["low"].value + 1) * 7.5
    mean = torch.nn.functional.avg_pool2d(split.values.float(), 2)
    assert low.shape == (150, 3, 8, 8) and (low - low.round()).abs().max() < 1e-5
    assert (low - mean).abs().max() <= 0.5 + 1e-5
    small = ready(size=8).splits["test"]
    assert small.values.equal(low.round().to(torch.uint8)) and small.labels.equal(split.labels)


def test_shapes_splits_are_disjoint_and_test_is_independent_of_sizes(data):
    found = [items(s) for s in data.splits.values()]
    assert sum(map(len, found)) == len(set.union(*found))
    other = ready(train_size=20, val_size=0)
    assert other.splits["test"].values.equal(data.splits["test"].values)
    assert other.encoder.vocabulary == data.encoder.vocabulary
    assert not ready(data_seed=1).splits["test"].values.equal(data.splits["test"].values)


@pytest.mark.parametrize(("number", "seed"), [(n, s) for n in (1, 4, 6) for s in range(5)])
def test_held_out_combinations_share_no_attribute_pair(number, seed):
    held = shapes.choose_held_out_combinations(number, seed)
    assert len(held) == number
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert len({(one[a], one[b]) for one in held}) == number


def test_held_out_combinations_are_in_test_but_not_in_train(data):
    there = {
        name: {tuple(a) for a in data.attributes(split.labels)[:, :3].tolist()}
        for name, split in data.splits.items()
    }
    assert not there["train"] & set(data.held_out)
    assert there["test"] & set(data.held_out)
