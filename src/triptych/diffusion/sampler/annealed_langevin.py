from typing import Any

import torch
from torch import Tensor

from triptych.declare import Count, Positive

from ..condition import Condition
from ..langevin import langevin
from ..protocol import AnyDenoiser
from .base import History, Sampler


class AnnealedLangevin(Sampler):
    r"""Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; tutorial sec. "Score-based").

    At each level ``inner`` updates of size ``rate sigma^2``, then on to the next, the point staying where it
    is in data units. Their step eps sigma_i^2 / sigma_L^2 is rate = eps / sigma_L^2: 0.2 for them.

    Raises:
        ValueError: ``inner`` below 1, ``rate`` not positive.
    """

    def __init__(
        self, steps: int, grid: str = "gamma", inner: Count = 10, rate: Positive = 0.2, **options: Any
    ):
        super().__init__(steps, grid, **options)
        self.inner, self.rate = inner, rate
        self.calls = inner

    def step(
        self,
        denoiser: AnyDenoiser,
        z: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        history: History | None = None,
    ) -> Tensor:
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        z = z * (alpha / denoiser.process.alpha_sigma(gamma_t)[0])
        size = self.rate * sigma.square()
        return langevin(lambda z: denoiser(z, gamma_s, condition).score, z, size, self.inner, generator)
