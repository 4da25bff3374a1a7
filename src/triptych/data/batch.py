"""The input of a model: a batch, the split it is taken from, and levels scaled to [-1, 1]."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.data.cache import MappedRows, item_number
from triptych.diffusion.condition import Condition


class Batch(NamedTuple):
    """The input of a model: B items with their conditions.

    x (B, *shape) float32: in [-1, 1] for discrete data, else in the data's own units. condition:
    the condition of the B items, or None. index (B,): positions of the items in their split.
    """

    x: Tensor
    condition: Condition | None
    # Evaluation noise follows from the index. The field hides the method ``tuple.index``.
    index: Tensor  # type: ignore[assignment]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; a copy from page-locked memory is asynchronous.

        ``index`` stays on the CPU, where its numbers seed evaluation noise: reading them from a GPU
        would wait for the GPU.
        """
        device = torch.device(device)
        # On these devices the result of an asynchronous copy may be read before the copy has ended.
        synchronous = device.type in ("cpu", "mps")
        condition = self.condition
        if condition is not None:
            condition = condition.to(device, non_blocking=not synchronous)
        return Batch(self.x.to(device, non_blocking=not synchronous), condition, self.index)

    def pin(self) -> "Batch":
        """Return the batch in page-locked memory, which copies faster to a GPU."""
        condition = None if self.condition is None else self.condition.pin_memory()
        return Batch(self.x.pin_memory(), condition, self.index)

    def numbers(self) -> Tensor:
        """Hash each item with its condition to one number, int64 (B,)."""
        tensors = [self.x]
        if self.condition is not None:
            tensors += self.condition.tensors()
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        numbers = [item_number(*row) for row in zip(*arrays, strict=True)]
        return torch.tensor(numbers, dtype=torch.int64)


def to_unit(k: Tensor, levels: int) -> Tensor:
    """Scale level numbers 0 .. levels-1 to [-1, 1]: x = 2k / (levels - 1) - 1.

    The result is float32, of any shape.
    """
    # Divide only once, and last, so that the result is correctly rounded: the ends are exactly -1
    # and 1. Work in place, as new memory for each result takes most of the time of large batches.
    x = k.to(torch.float32, copy=True)
    return x.mul_(2).sub_(levels - 1).div_(levels - 1)


def to_level(x: Tensor, levels: int) -> Tensor:
    """Return the number (int64, 0 .. levels-1) of the level nearest to x in [-1, 1]; any shape."""
    return ((x.float() + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).long()


@dataclass(frozen=True, eq=False)
class Split:
    """The items of a split, with their conditions.

    values (n, *shape): level numbers (uint8 or int64) if `levels` is set, else float32.
    condition: the condition of the n items, or None.
    digests: a hash of each item, int64 (n,), if it was computed when the files were read.
    groups: a number for each item, int64 (n,), equal for items that belong together, such as those
    of one patient. Standard errors are then over groups; None: items are taken as independent.
    """

    values: Tensor | MappedRows
    condition: Condition | None = None
    levels: int | None = None
    digests: Tensor | None = None
    groups: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """The condition's part "label", (n,) int64, or None."""
        if self.condition is None or "label" not in self.condition.parts:
            return None
        return self.condition.label

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, index: Tensor) -> Batch:
        """Return the items at positions `index` (B,), scaled as `Batch` describes."""
        values = self.values[index]
        x = values.float() if self.levels is None else to_unit(values, self.levels)
        condition = None if self.condition is None else self.condition[index]
        return Batch(x, condition, index)
