from typing import Any

import torch
from torch import Tensor

from triptych.declare import Share

from ..condition import Condition
from ..protocol import AnyDenoiser
from .base import History, Sampler, noise_like


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
        guess = denoiser(z, gamma_t, condition)
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        if not self.eta:
            return guess.at(alpha, sigma)
        fresh = self.eta**2 * -torch.expm1(gamma_s - gamma_t)
        mean = guess.at(alpha, sigma * torch.sqrt(1 - fresh))
        return mean.addcmul_(noise_like(z, generator), sigma * torch.sqrt(fresh))
