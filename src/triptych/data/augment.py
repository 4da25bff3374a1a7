"""Changes of training images: drawn anew at every step, never for validation and test.

The bound that a run reports is of the images as they are. What is drawn follows from the seed, the step and
the place in the *global* batch, so a resumed run and another number of processes change the same images.

What a model learns of changed images it would draw, too. One that is ``told`` what was done to each item, and
asked for items to which nothing was, does not (Karras et al. 2020, 2022: non-leaking augmentation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.declare import Count, Share, Unit, declared
from triptych.diffusion.condition import Part
from triptych.diffusion.draws import mix
from triptych.errors import UserError

Uniform = Callable[[], Tensor]


class Augmentation:
    """``augmentation(x, uniform)`` -> changed x (B, C, H, W); ``uniform()`` draws (B,) numbers in [0, 1).

    Attributes:
        told: whether the network is told what was done.
        numbers: in which that is said, each in [-1, 1], all 0 for an item as it is.
    """

    told, numbers = False, 0

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        return self.said(x, uniform)[0]

    def said(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Changed x, and what was done, (B, numbers); for one that can be told."""
        raise NotImplementedError


@declared("augmentation.flip")
class Flip(Augmentation):
    """Left and right exchanged, with probability ``p``; ``told``: 1 for such an item."""

    numbers = 1

    def __init__(self, p: Share = 0.5, told: bool = False) -> None:
        self.p, self.told = p, told

    def said(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        done = uniform() < self.p
        return torch.where(done.view(-1, 1, 1, 1), x.flip(-1), x), done.to(x).unsqueeze(1)


@declared("augmentation.crop")
class Crop(Augmentation):
    """Moved by up to ``padding`` pixels in each direction; what comes in is the border's mirror image.

    Args:
        padding: pixels.
        p: probability that an item is moved.
        told: by how much, in paddings down and to the right.
    """

    numbers = 2

    def __init__(
        self, padding: Annotated[Count, Unit("pixels")] = 4, p: Share = 1.0, told: bool = False
    ) -> None:
        self.padding, self.p, self.told = padding, p, told

    def said(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        if self.padding >= min(height, width):
            raise UserError(
                f"augmentation.crop.padding={self.padding}: {height} x {width} pixels have no mirror "
                f"image that wide; up to {min(height, width) - 1} is accepted"
            )
        wide = pad(x, (self.padding,) * 4, mode="reflect")
        shifts = 2 * self.padding + 1
        down, right = ((uniform() * shifts).long().view(-1, 1) for _ in range(2))
        if self.p < 1:
            stays = (uniform() >= self.p).view(-1, 1)
            down, right = (torch.where(stays, self.padding, by) for by in (down, right))
        rows = (down + torch.arange(height)).view(len(x), 1, height, 1)
        columns = (right + torch.arange(width)).view(len(x), 1, 1, width)
        item = torch.arange(len(x)).view(-1, 1, 1, 1)
        moved = 1 - torch.cat([down, right], 1).to(x) / self.padding
        return wide[item, torch.arange(x.shape[1]).view(1, -1, 1, 1), rows, columns], moved


def augment(
    x: Tensor, steps: list[Augmentation], seed: int, step: int, rank: int = 0, world: int = 1
) -> tuple[Tensor, Part | None]:
    """``x`` (B, C, H, W), this process's share of the batch of ``step``, after all ``steps`` in turn.

    With it what was done, of the steps that are told: absent where that is nothing, None if none is told.

    Raises:
        UserError: ``x`` is no batch of images.
    """
    if x.ndim != 4:
        raise UserError(
            f"augmentation: for images (C, H, W), this data has shape {tuple(x.shape[1:])}; "
            "augmentation=none is accepted"
        )
    generator = torch.Generator().manual_seed(mix(seed, 21, step))
    share = slice(rank * len(x), (rank + 1) * len(x))
    uniform = lambda: torch.rand(len(x) * world, generator=generator)[share]  # noqa: E731
    said = []
    for change in steps:
        if change.told:
            x, done = change.said(x, uniform)
            said.append(done)
        else:
            x = change(x, uniform)
    if not said:
        return x, None
    done = torch.cat(said, 1)
    return x, Part(done, done.any(1))


def numbers_told(steps: list[Augmentation]) -> int:
    """In how many numbers a network is told what was done to an item."""
    return sum(change.numbers for change in steps if change.told)
