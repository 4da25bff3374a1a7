"""The conditions of samples: a class, a vector, an image, a text, or several of these.

Batches carry a ``Condition``, networks embed it, dropout hides parts of it, guidance compares
predictions with and without it, and samplers pass it on. Without a condition (None) the model
predicts unconditionally. A part may be absent for some of the items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .draws import BATCH_DRAWS, BatchDraws, StepShare, Stream

# Name of the part that describes how a training image was augmented. Prompts never have it.
AUGMENTATION = "augmentation"
# Name of the part that assigns items to the members of a network. It exists only in training.
MEMBER = "network.member"


@dataclass(frozen=True)
class Labels:
    """A class label, one of ``classes``: values (B,) int64."""

    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Vectors:
    """A vector such as an embedding: values (B, width)."""

    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)


@dataclass(frozen=True)
class Images:
    """An image: values (B, *shape), shape (C, H, W)."""

    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Tokens:
    """An embedded text: values (B, length, width), with a mask (B, length) of its tokens."""

    length: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.width


Kind = Labels | Vectors | Images | Tokens  # a data set declares one for each part


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the condition of B items.

    ``value``: (B, ...). ``present``: (B,) bool, which items have the part; None: all of them.
    ``mask``: (B, length) bool, True where there is a token; None: everywhere.
    """

    value: Tensor
    present: Tensor | None = None
    mask: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return the value, then presence and mask unless they are None."""
        optional = [tensor for tensor in (self.present, self.mask) if tensor is not None]
        return [self.value, *optional]

    def map(self, change: Callable[[Tensor], Tensor]) -> Part:
        present = None if self.present is None else change(self.present)
        mask = None if self.mask is None else change(self.mask)
        return Part(change(self.value), present, mask)

    def presence(self) -> Tensor:
        if self.present is not None:
            return self.present
        return torch.ones(len(self.value), dtype=torch.bool, device=self.value.device)

    def token_mask(self) -> Tensor:
        """Return the mask of existing tokens, (B, length) bool."""
        if self.mask is not None:
            return self.mask
        return self.value.new_ones(self.value.shape[:2], dtype=torch.bool)


class Condition:
    """One or more named parts, each for the same B items.

    Example: ``Condition(label=y, text=Part(tokens, mask=mask))``.
    """

    def __init__(self, **parts: Tensor | Part):
        self.parts = {name: p if isinstance(p, Part) else Part(p) for name, p in parts.items()}
        sizes = {len(tensor) for tensor in self.tensors()}
        if len(sizes) != 1:
            problem = f"parts [{', '.join(self.parts)}] with {sorted(sizes)} items"
            fix = "pass at least one part, and equally many items in all parts"
            raise ValueError(f"condition: {problem}; {fix}")

    @staticmethod
    def of(**parts: Tensor | Part | None) -> Condition | None:
        """Return the condition with those parts that are not None, or None if there are none."""
        some = {name: part for name, part in parts.items() if part is not None}
        return Condition(**some) if some else None

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())).value)

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return self.map(lambda t: t[index])

    def tensors(self) -> list[Tensor]:
        """Return the values of all parts, each with its presence and mask where it has one."""
        return [tensor for part in self.parts.values() for tensor in part.tensors()]

    def part(self, name: str) -> Part | None:
        return self.parts.get(name)

    @property
    def label(self) -> Tensor:
        """The value of the part "label", (B,) int64; ValueError if there is no such part."""
        if "label" not in self.parts:
            raise ValueError(f"condition: has no part label, only {', '.join(self.parts)}")
        return self.parts["label"].value

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(**{name: part.map(change) for name, part in self.parts.items()})

    def to(self, *where: Any, **more: Any) -> Condition:
        return self.map(lambda t: t.to(*where, **more))

    def pin_memory(self) -> Condition:
        return self.map(lambda t: t.pin_memory())

    def split(self, size: int) -> list[Condition]:
        """Split into conditions of ``size`` items each, in order; the last may be smaller."""
        return [self[slice(start, start + size)] for start in range(0, len(self), size)]

    def merge(self, other: Condition | None) -> Condition:
        """Merge two conditions of the same items. For equal names take the part of ``other``."""
        return self if other is None else Condition(**{**self.parts, **other.parts})

    def without(self, *names: str) -> Condition | None:
        return Condition.of(
            **{name: part for name, part in self.parts.items() if name not in names}
        )

    def only(self, *names: str) -> Condition | None:
        return Condition.of(**{name: part for name, part in self.parts.items() if name in names})

    def drop(self, is_absent: Mapping[str, Tensor]) -> Condition:
        """Return a copy in which the parts marked in ``is_absent`` are absent.

        ``is_absent`` maps names of parts to (B,) bool. Parts that were absent before stay absent.
        """
        parts = dict(self.parts)
        for name, dropped in is_absent.items():
            part = parts[name]
            parts[name] = Part(
                part.value, part.presence() & ~dropped.to(part.value.device), part.mask
            )
        return Condition(**parts)


def find_part(condition: Condition | None, name: str) -> Part | None:
    """Return a part of a condition by its name; None if the part or the condition is absent."""
    return None if condition is None else condition.part(name)


def drop_parts(
    condition: Condition,
    probabilities: float | Mapping[str, float],
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    random: BatchDraws = BATCH_DRAWS,
) -> Condition:
    """Drop parts of ``condition`` at random, so that one network learns p(x | y) and p(x).

    Ho & Salimans 2022, alg. 1. If ``probabilities`` is a number, all parts of an item are dropped
    together with that probability; if it is a mapping, each part is dropped independently with its
    own. The choice follows from (seed, step) and the item's place in the *global* batch, of which
    each process takes its slice.
    """
    device = condition.tensors()[0].device
    share = StepShare(len(condition) * world, seed, step, rank, world, device)

    def is_dropped(probability: float, *part: int) -> Tensor:
        return random.uniforms(share, Stream.LABELS, *part) < probability

    if not isinstance(probabilities, Mapping):
        return condition.drop(dict.fromkeys(condition.parts, is_dropped(probabilities)))
    dropped = {}
    for place, name in enumerate(sorted(probabilities)):
        if name in condition.parts:
            dropped[name] = is_dropped(probabilities[name], place)
    return condition.drop(dropped)
