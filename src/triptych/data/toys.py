"""Three shapes in the plane that every paper draws: two moons, a swiss roll, a checkerboard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from triptych.data.base import Generated
from triptych.declare import Choice

Drawn = tuple[Tensor, Tensor | None]
NOISE = 0.05  # deviation of the moons and of the roll, on the scale of the data


def two_moons(n: int, generator: Generator) -> Drawn:
    """Draw two interlocking half circles of radius 1, centred; the label is the moon."""
    moon = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    sign = 1 - 2 * moon  # the second moon is the first, turned by half a turn about the origin
    x = torch.stack([sign * (angle.cos() - 0.5), sign * (angle.sin() - 0.25)], 1)
    return x + NOISE * torch.randn(n, 2, generator=generator), moon


def swiss_roll(n: int, generator: Generator) -> Drawn:
    """Return the spiral t (cos t, sin t), t uniform in 1.5 pi .. 4.5 pi, scaled to a radius of at most 2."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    x = torch.stack([t * t.cos(), t * t.sin()], 1) * (2 / (4.5 * math.pi))
    return x + NOISE * torch.randn(n, 2, generator=generator), None


def checkerboard(n: int, generator: Generator) -> Drawn:
    """Draw uniformly from the eight squares of a 4 x 4 board over [-2, 2]^2 whose column + row is even."""
    column, half = torch.randint(4, (n,), generator=generator), torch.randint(2, (n,), generator=generator)
    corner = torch.stack([column, 2 * half + column % 2], 1) - 2
    return corner + torch.rand(n, 2, generator=generator), None


KINDS: dict[str, Callable[[int, Generator], Drawn]] = {
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
    "checkerboard": checkerboard,
}


class Toy(Generated):
    """Points (2,) of one `kind`, about unit scale. No truth to measure against; use a mixture for that."""

    shape = (2,)

    def __init__(self, kind: Annotated[str, Choice(KINDS)], **sizes: Any) -> None:
        super().__init__(**sizes)
        self.name = kind
        self.num_classes = 2 if kind == "two_moons" else 0

    def formula(self) -> dict[str, Any]:
        return {"kind": self.name, "noise": NOISE}

    def draw(self, n: int, generator: Generator) -> Drawn:
        return KINDS[self.name](n, generator)
