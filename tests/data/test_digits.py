"""Digits, levels and splits."""

import inspect
import runpy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.batch import Split, to_level, to_unit
from triptych.data.digits import Digits

from .helpers import items


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


def test_digits_splits_follow_documented_permutation(digits):
    from sklearn.datasets import load_digits

    order = np.random.RandomState(0).permutation(1797)
    truth = load_digits()
    for name, part in (("train", order[:1350]), ("val", order[1350:1500]), ("test", order[1500:])):
        split = digits.splits[name]
        assert np.array_equal(split.values[:, 0].numpy(), truth.images[part])
        assert np.array_equal(split.labels.numpy(), truth.target[part])
        assert split.values.dtype == torch.uint8 and split.values.shape[1:] == digits.shape
    assert sum(map(len, digits.splits.values())) == 1797
    # No two of the 1797 images are equal, so this says that no item is in two splits.
    assert len(set.union(*map(items, digits.splits.values()))) == 1797


def test_val_size_zero_adds_validation_items_to_train(digits):
    data = Digits(val_size=0)
    data.setup()
    assert [len(data.splits[name]) for name in ("train", "val", "test")] == [1500, 0, 297]
    assert data.splits["test"].values.equal(digits.splits["test"].values)
    assert data.splits["train"].values[:1350].equal(digits.splits["train"].values)
    assert list(data.val_dataloader()) == []


def test_read_digits_does_not_import_sklearn(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    runpy.run_path(inspect.getfile(Digits))["read_digits"]()
    assert "sklearn" not in sys.modules


def test_batch_is_scaled(digits):
    batch = next(iter(digits.eval_dataloader("test")))
    split = digits.splits["test"]
    assert batch.x.dtype == torch.float32 and batch.x.shape == (297, 1, 8, 8)
    assert batch.x.equal(split.values.float() / 8 - 1)
    assert batch.x.min() == -1 and batch.x.max() == 1
    label = batch.condition.label
    assert label.equal(split.labels) and label.dtype == batch.index.dtype == torch.int64


def test_continuous_split_is_not_scaled():
    batch = Split(torch.tensor([[3.0], [-5.0]])).batch(torch.tensor([1]))
    assert batch.x.tolist() == [[-5.0]] and batch.condition is None


@given(st.integers(2, 65536), st.data())
def test_levels_round_trip(levels, data):
    k = torch.tensor(data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=20)))
    x = to_unit(k, levels)
    assert x.dtype == torch.float32
    assert to_unit(torch.tensor([0, levels - 1]), levels).tolist() == [-1, 1]
    assert torch.allclose(x.double(), 2 * k.double() / (levels - 1) - 1, atol=1e-6)
    assert to_level(x, levels).equal(k)
    number = k.float()
    assert to_unit(number, levels).equal(x) and number.equal(k.float()), "the input stays as it is"


@given(st.integers(2, 256), st.floats(-1.5, 1.5, width=32))
def test_nearest_level(levels, x):
    centres = to_unit(torch.arange(levels), levels)
    distance = (centres - x).abs()
    assert distance[to_level(torch.tensor(x), levels)] <= distance.min() + 1e-6
