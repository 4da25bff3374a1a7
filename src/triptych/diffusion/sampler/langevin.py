"""Plain Langevin dynamics at one level."""

from typing import Any

import torch
from torch import Tensor

from triptych.declare import Count, Positive

from ..langevin import langevin
from ..schedule import Schedule
from .base import Sampler, Step


class Langevin(Sampler):
    """Plain Langevin dynamics: every level is the last one, gamma(0), and the weights of modes are lost.

    There is no Metropolis step, so a Gaussian mode of variance s^2 comes out with the variance
    s^2 / (1 - size / (4 s^2)), and from size = 4 s^2 the updates diverge: ``size`` has to be small beside the
    narrowest variance of the data.

    Args:
        steps, inner: ``steps`` times ``inner`` updates.
        size: of one update, in data units squared.

    Raises:
        ValueError: ``inner`` below 1, ``size`` not positive.
    """

    def __init__(self, steps: int, inner: Count = 10, size: Positive = 0.002, **options: Any):
        super().__init__(steps, **options)
        self.inner, self.size = inner, size
        self.calls = inner

    def gammas(
        self, schedule: Schedule, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """gamma(1), where the starting noise is drawn, then gamma(0) ``steps`` times."""
        grid = super().gammas(schedule, device, dtype)
        grid[1:] = grid[-1].clone()
        return grid

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, _ = at.process.alpha_sigma(at.gamma_s)
        z = z * (alpha / at.process.alpha_sigma(at.gamma_t)[0])
        size = self.size * alpha.square()
        return langevin(lambda z: at.guess(z, at.gamma_s).score, z, size, self.inner, at.generator)
