"""DDIM (Song et al. 2021): deterministic steps, or with a share of the ancestral noise."""

from typing import Any

import torch
from torch import Tensor

from triptych.declare import Share

from .base import Sampler, Step


class DDIM(Sampler):
    r"""Song et al. 2021 (DDIM, eq. 12): z_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise.

    n = eta sigma_s sqrt(1 - exp(gamma_s - gamma_t)), eta times beta tilde's root as in their eq. 16, whatever
    the reverse variance of the bound: eta = 0 is the probability-flow ODE's first-order step, eta = 1 the
    ancestral sampler of beta tilde. What lies between, or learns its variance, is no model of DDIM's.

    Raises:
        ValueError: ``eta`` outside [0, 1].
    """

    def __init__(self, steps: int, grid: str = "gamma", eta: Share = 0.0, **options: Any):
        super().__init__(steps, grid, **options)
        self.eta = eta

    def step(self, z: Tensor, at: Step) -> Tensor:
        guess = at.guess(z, at.gamma_t)
        alpha, sigma = at.process.alpha_sigma(at.gamma_s)
        if not self.eta:
            return guess.at(alpha, sigma)
        fresh = self.eta**2 * -torch.expm1(at.gamma_s - at.gamma_t)
        mean = guess.at(alpha, sigma * torch.sqrt(1 - fresh))
        return mean.addcmul_(at.noise(z), sigma * torch.sqrt(fresh))
