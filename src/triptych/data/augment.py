"""Changes of training images: drawn anew at every step, never for validation and test.

The bound that a run reports is of the images as they are. What is drawn follows from the seed, the step and
the place in the *global* batch, so a resumed run and another number of processes change the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.declare import Count, Share, Unit, declared
from triptych.diffusion.draws import mix
from triptych.errors import UserError

Uniform = Callable[[], Tensor]


class Augmentation:
    """``augmentation(x, uniform)`` -> changed x (B, C, H, W); ``uniform()`` draws (B,) numbers in [0, 1)."""

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        raise NotImplementedError


@declared("augmentation.flip")
class Flip(Augmentation):
    """Left and right exchanged, with probability ``p``."""

    def __init__(self, p: Share = 0.5) -> None:
        self.p = p

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        return torch.where((uniform() < self.p).view(-1, 1, 1, 1), x.flip(-1), x)


@declared("augmentation.crop")
class Crop(Augmentation):
    """Moved by up to ``padding`` pixels in each direction; what comes in is the border's mirror image."""

    def __init__(self, padding: Annotated[Count, Unit("pixels")] = 4) -> None:
        self.padding = padding

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        height, width = x.shape[-2:]
        if self.padding >= min(height, width):
            raise UserError(
                f"augmentation.crop.padding={self.padding}: {height} x {width} pixels have no mirror "
                f"image that wide; up to {min(height, width) - 1} is accepted"
            )
        wide = pad(x, (self.padding,) * 4, mode="reflect")
        shifts = 2 * self.padding + 1
        down, right = ((uniform() * shifts).long().view(-1, 1) for _ in range(2))
        rows = (down + torch.arange(height)).view(len(x), 1, height, 1)
        columns = (right + torch.arange(width)).view(len(x), 1, 1, width)
        item = torch.arange(len(x)).view(-1, 1, 1, 1)
        return wide[item, torch.arange(x.shape[1]).view(1, -1, 1, 1), rows, columns]


def augment(
    x: Tensor, steps: list[Augmentation], seed: int, step: int, rank: int = 0, world: int = 1
) -> Tensor:
    """``x`` (B, C, H, W), this process's share of the batch of ``step``, after all ``steps`` in turn.

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
    for change in steps:
        x = change(x, lambda: torch.rand(len(x) * world, generator=generator)[share])  # noqa: B023
    return x
