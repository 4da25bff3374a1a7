"""Annealed Langevin dynamics (Song & Ermon 2019)."""

from typing import Any

from torch import Tensor

from triptych.declare import Count, Positive

from ..langevin import langevin
from .base import Sampler, Step


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

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, sigma = at.process.alpha_sigma(at.gamma_s)
        z = z * (alpha / at.process.alpha_sigma(at.gamma_t)[0])
        size = self.rate * sigma.square()
        return langevin(lambda z: at.guess(z, at.gamma_s).score, z, size, self.inner, at.generator)
