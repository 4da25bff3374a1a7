"""Langevin dynamics: sampling from a score alone (Song & Ermon 2019; Luo 2022, "Score-based")."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triptych.declare import Count, Positive

from ..schedule import Schedule
from .ancestral import Ancestral
from .base import Grid, Sampler, Step


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    size: Tensor | float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Repeat x <- x + size / 2 score(x) + sqrt(size) noise ``steps`` times, from x (B, *event).

    For a Gaussian of variance s^2, the stationary distribution has the variance s^2 / (1 - size /
    (4 s^2)). The time to cross a gap of low density is exponential.
    """
    size = torch.as_tensor(size, dtype=x.dtype, device=x.device)
    root = size.sqrt()
    for _ in range(steps):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = torch.addcmul(x, score(x), 0.5 * size).addcmul_(noise, root)
    return x


class Langevin(Sampler):
    """Plain Langevin dynamics: all updates are at the last level, gamma(0).

    The relative weights of modes are lost. There is no Metropolis step: from size = 4 s^2 on, where
    s^2 is the smallest variance of the data, updates diverge.

    Args:
        inner: updates in each of ``steps``.
        size: size of one update, in squared data units.
    """

    def __init__(self, steps: int, inner: Count = 10, size: Positive = 0.002, **options: Any):
        super().__init__(steps, **options)
        self.inner, self.size = inner, size
        self.calls = inner

    def gammas(
        self,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        grid = super().gammas(schedule, device, dtype)
        grid[1:] = grid[-1].clone()
        return grid

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, _ = at.scales(at.gamma_s)
        return _langevin_update(z, at, self.size * alpha.square(), self.inner)


class AnnealedLangevin(Sampler):
    r"""Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

    At each level there are ``inner`` updates of size ``rate sigma^2``; then the point moves to the
    next level, unchanged in data units. The paper's step eps sigma_i^2 / sigma_L^2 means rate = eps
    / sigma_L^2, which is 0.2 there.
    """

    def __init__(
        self,
        steps: int,
        grid: Grid = "gamma",
        inner: Count = 10,
        rate: Positive = 0.2,
        **options: Any,
    ):
        super().__init__(steps, grid, **options)
        self.inner, self.rate = inner, rate
        self.calls = inner

    def step(self, z: Tensor, at: Step) -> Tensor:
        _, sigma = at.scales(at.gamma_s)
        return _langevin_update(z, at, self.rate * sigma.square(), self.inner)


class PredictorCorrector(Ancestral):
    """Predictor-corrector sampling: ancestral steps, each with Langevin updates after it.

    Song et al. 2021 (SDE), algorithm 1, with ``inner`` updates at the new level. The paper's
    corrector (algorithm 4) is z + e score + sqrt(2 e) noise with e = 2 (snr |noise| / |score|)^2,
    which is 2 snr^2 sigma^2 if the score has its typical length sqrt(d) / sigma. We use that value
    everywhere, so that no sample's step depends on its batch; ``langevin``'s size is 2 e. The
    factor 1 - beta_i of algorithm 5 (VP), at least .98 on the paper's grid of 1000, is left out.
    """

    def __init__(
        self,
        steps: int,
        grid: Grid = "gamma",
        inner: Count = 1,
        snr: Positive = 0.16,
        **options: Any,
    ):
        super().__init__(steps, grid, **options)
        self.inner, self.snr = inner, snr
        self.calls = 1 + inner

    def step(self, z: Tensor, at: Step) -> Tensor:
        z = super().step(z, at)
        _, sigma = at.scales(at.gamma_s)
        size = 4 * self.snr**2 * sigma.square()
        return langevin(lambda z: at.guess(z, at.gamma_s).score, z, size, self.inner, at.generator)


def _langevin_update(z: Tensor, at: Step, size: Tensor, steps: int) -> Tensor:
    """Move z from gamma_t to gamma_s, unchanged in data units, and update it ``steps`` times."""
    z = z * (at.scales(at.gamma_s)[0] / at.scales(at.gamma_t)[0])
    return langevin(lambda z: at.guess(z, at.gamma_s).score, z, size, steps, at.generator)
