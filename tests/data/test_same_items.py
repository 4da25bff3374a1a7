"""A run is evaluated on the items with which it started."""

import pytest
import torch

from tests.refusal import refused
from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.diffusion.condition import Condition

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


class Points(DataModule):
    name, shape, num_classes = "points", (2,), 3

    def load(self):
        return {
            name: Split(X.clone(), Condition(label=Y.clone())) for name in ("train", "val", "test")
        }


def begun() -> Points:
    data = Points(eval_batch_size=8)
    data.setup()
    data.remember()
    return data


def test_eval_check_accepts_same_items_in_any_batch_size():
    data = begun()
    data.eval_batch_size = 3
    assert torch.cat([batch.x for batch in data.eval_dataloader("test")]).equal(X)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("part", ["values", "labels"])
def test_changed_item_or_label_stops_evaluation(split, part):
    data = begun()
    getattr(data.splits[split], part)[17] += 1
    refused(lambda: [*data.eval_dataloader(split)], f"data: items of {split} have changed since")


def test_changed_group_stops_evaluation():
    """Groups decide the standard error."""
    data = Points(eval_batch_size=8)
    splits = ("train", "val", "test")
    data.splits = {name: Split(X, groups=torch.arange(len(X)) // 4) for name in splits}
    data.remember()
    data.splits["test"].groups[17] += 1
    refused(lambda: [*data.eval_dataloader("test")], "data: items of test have changed since")


def test_random_split_stops_evaluation():
    class Flips(Split):
        def batch(self, index):
            batch = super().batch(index)
            return batch._replace(x=batch.x.flip(1) if torch.rand(()) < 0.5 else batch.x)

    torch.manual_seed(0)
    data = Points(eval_batch_size=2)
    data.splits = {name: Flips(X) for name in ("train", "val", "test")}
    data.remember()
    refused(lambda: [*data.eval_dataloader("test")], "data: items of test have changed since")
