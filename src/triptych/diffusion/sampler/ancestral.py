import copy
from typing import Annotated

import torch
from torch import Tensor

from triptych.declare import Choice

from ..reverse_variance import VARIANCES, Optimal, ReverseVariance
from ..schedule import Schedule
from .base import Sampler, noise_like


class Ancestral(Sampler):
    r"""p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), V): the generative model whose bound we report.

    ``Process.posterior`` written in x_hat and eps_hat, with q = e^{gamma_s - gamma_t} (tutorial eqs. 84, 94):
    mean alpha_s x_hat + sigma_s sqrt(q) eps_hat, and V = beta tilde = sigma_s^2 (1 - q) or another of
    ``reverse_variance``. The last step ends at z_0, a latent like the others, and is drawn with its V too;
    data are z_0 / alpha_0, the decoder's mean, without noise of p(x | z_0).

    Args:
        variance: "beta_tilde", "beta", "optimal" or "learned"; None: the one of the bound.

    Raises:
        ValueError: an unknown ``variance``.
    """

    def __init__(
        self,
        steps: int,
        grid: str = "gamma",
        variance: Annotated[str, Choice(VARIANCES)] | None = None,
        **options,
    ):
        super().__init__(steps, grid, **options)
        self.variance = variance
        self.reverse = VARIANCES[variance or "beta_tilde"]()

    def drawing_from(self, variance: ReverseVariance) -> "Ancestral":
        if self.variance is not None:
            return self
        other = copy.copy(self)
        other.reverse = variance
        return other

    def calibrated(
        self, denoiser, schedule: Schedule, x: Tensor, seed: int = 0, condition: Tensor | None = None
    ) -> "Ancestral":
        if not isinstance(self.reverse, Optimal):
            return self
        optimal = Optimal()
        levels = self.gammas(schedule, x.device, x.dtype)[:-1].flip(0)
        optimal.measure(denoiser, levels, x, seed, condition)
        other = copy.copy(self)
        other.reverse = optimal
        return other

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        guess = denoiser(z, gamma_t, condition)
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        mean = guess.at(alpha, sigma * torch.exp(0.5 * (gamma_s - gamma_t)))
        std = sigma * torch.sqrt(-torch.expm1(gamma_s - gamma_t))  # of beta tilde
        assert self.reverse is not None
        widened = torch.exp(0.5 * self.reverse.log_ratio(denoiser.process, gamma_t, gamma_s, guess))
        return mean.addcmul_(noise_like(z, generator), std * widened)
