import torch
from torch import Tensor

from ..langevin import langevin
from .base import Sampler


class AnnealedLangevin(Sampler):
    r"""Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; tutorial sec. "Score-based").

    At each level ``inner`` updates of size ``rate sigma^2``, then on to the next, the point staying where it
    is in data units. Their step eps sigma_i^2 / sigma_L^2 is rate = eps / sigma_L^2: 0.2 in their
    experiments.

    Raises:
        ValueError: ``inner`` below 1, ``rate`` not positive.
    """

    def __init__(self, steps: int, grid: str = "gamma", inner: int = 10, rate: float = 0.2, **options):
        super().__init__(steps, grid, **options)
        if inner < 1:
            raise ValueError(f"sampler.inner={inner}: a whole number from 1 is accepted")
        if not rate > 0:
            raise ValueError(f"sampler.rate={rate}: a positive number is accepted")
        self.inner, self.rate = inner, rate
        self.calls = inner

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        z = z * (alpha / denoiser.process.alpha_sigma(gamma_t)[0])
        size = self.rate * sigma.square()
        return langevin(lambda z: denoiser(z, gamma_s, condition).score, z, size, self.inner, generator)


class Langevin(AnnealedLangevin):
    """Plain Langevin dynamics: every level is the last one, gamma(0), and the weights of the modes are lost.

    Args:
        size: step size in the data's own units, squared.
    """

    def __init__(self, steps: int, inner: int = 10, size: float = 0.1, **options):
        super().__init__(steps, inner=inner, rate=size, **options)

    def gammas(self, schedule, device="cpu", dtype=torch.float32) -> Tensor:
        grid = super().gammas(schedule, device, dtype)
        grid[1:] = grid[-1].clone()
        return grid

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        alpha, _ = denoiser.process.alpha_sigma(gamma_s)
        z = z * (alpha / denoiser.process.alpha_sigma(gamma_t)[0])
        size = self.rate * alpha.square()
        return langevin(lambda z: denoiser(z, gamma_s, condition).score, z, size, self.inner, generator)
