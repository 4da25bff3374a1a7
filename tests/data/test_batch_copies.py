"""Batches move to a device without a wait: from locked memory, and with their index left behind."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.data.batch import Batch
from triptych.data.mixture import Ring
from triptych.diffusion.condition import Condition


class Copies(TorchDispatchMode):
    """Record of each copy between devices whether it is waited for."""

    def __init__(self):
        super().__init__()
        self.non_blocking: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self.non_blocking.append(bool(kwargs.get("non_blocking")))
        return func(*args, **kwargs)


def batch() -> Batch:
    label = Condition(label=torch.arange(4))
    return Batch(torch.zeros(4, 2), label, torch.arange(4))


def moved_by_lightning(device: str) -> tuple[Batch, list[bool]]:
    from pytorch_lightning import LightningModule

    with Copies() as copies:
        there = LightningModule().transfer_batch_to_device(batch(), torch.device(device), 0)
    return there, copies.non_blocking


def test_a_batch_is_copied_without_a_wait_and_keeps_its_index():
    there, non_blocking = moved_by_lightning("meta")
    assert isinstance(there, Batch) and there.x.device.type == "meta"
    assert there.condition.label.device.type == "meta" and there.index.device.type == "cpu"
    assert len(non_blocking) >= 2 and all(non_blocking)


def test_a_batch_that_is_on_its_device_is_not_copied():
    there, non_blocking = moved_by_lightning("cpu")
    assert non_blocking == [] and torch.equal(there.x, batch().x)


def test_items_are_hashed_outside_of_locked_memory(monkeypatch):
    """Locking memory opens CUDA, and a process does not know its GPU yet."""
    data = Ring(train_size=4, val_size=4, test_size=4, batch_size=4)
    data.setup()
    data.pin_memory = True
    monkeypatch.setattr(Batch, "pin", None)
    data.remember()
    assert {name: len(numbers) for name, numbers in data.numbers.items()} == {
        "train": 4,
        "val": 4,
        "test": 4,
    }
