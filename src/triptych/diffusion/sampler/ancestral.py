"""Ancestral sampling: draw each step from the model's reverse chain."""

import copy
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from triptych.declare import IsClass, Share

from ..condition import Condition
from ..protocol import AnyDenoiser
from ..reverse_variance import BetaTilde, Optimal, ReverseVariance, as_variance
from ..schedule import Schedule
from .base import Grid, Sampler, Step


class Ancestral(Sampler):
    """Ancestral sampling from the generative model whose bound we report.

    p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), V). This is ``Process.posterior`` written in x_hat
    and eps_hat, with q = e^{gamma_s - gamma_t} (Luo 2022, eqs. 84, 94): the mean is alpha_s x_hat +
    sigma_s sqrt(q) eps_hat, and V is beta tilde = sigma_s^2 (1 - q) or another of
    ``reverse_variance``. The last step, to z_0, is drawn with its V too; samples are z_0 / alpha_0,
    the decoder's mean.

    Args:
        variance: an object, its short name ("beta", "optimal", ...) or a number from 0 (beta tilde)
            to 1 (beta), the share of log beta; None: that of the bound.
    """

    def __init__(
        self,
        steps: int,
        grid: Grid = "gamma",
        variance: Literal["beta_tilde", "beta", "optimal", "learned"]
        | Share
        | Annotated[ReverseVariance, IsClass()]
        | None = None,
        **options: Any,
    ):
        super().__init__(steps, grid, **options)
        self.variance = None if variance is None else as_variance(variance, "sampler.variance")
        self.reverse = self.variance or BetaTilde()

    def with_reverse_variance(self, variance: ReverseVariance) -> "Ancestral":
        if self.variance is not None:
            return self
        other = copy.copy(self)
        other.reverse = variance
        return other

    def calibrated(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        x: Tensor,
        seed: int = 0,
        condition: Condition | None = None,
    ) -> "Ancestral":
        """Return a copy whose optimal variance is measured on x (B, *event), on its own grid."""
        is_own = self.variance is self.reverse  # the variance belongs to the sampler, not the bound
        if not isinstance(self.reverse, Optimal) or (is_own and self.reverse.gamma is not None):
            return self
        optimal = Optimal()
        levels = self.gammas(schedule, x.device, x.dtype)[:-1].flip(0)
        if not len(levels):  # without steps, a sample is a single prediction
            return self
        optimal.measure(denoiser, levels, x, seed, condition)
        other = copy.copy(self)
        other.variance = other.reverse = optimal
        return other

    def step(self, z: Tensor, at: Step) -> Tensor:
        guess = at.guess(z, at.gamma_t)
        alpha, sigma = at.scales(at.gamma_s)
        change = at.gamma_s - at.gamma_t
        mean = guess.at(alpha, sigma * torch.exp(0.5 * change))
        std = sigma * torch.sqrt(-torch.expm1(change))  # std of beta_tilde
        assert self.reverse is not None
        widened = torch.exp(0.5 * self.reverse.log_ratio(at.process, at.gamma_t, at.gamma_s, guess))
        return mean.addcmul_(at.noise(z), std * widened)
