r"""The bound: -log p(x) <= prior + reconstruction + diffusion, in nats (tutorial eq. 58; VDM eq. 12).

It is the one accounting of the house: whatever a run trained on, this is what it reports.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .draws import Draw
from .schedule import Schedule


@dataclass(frozen=True)
class Elbo:
    """The three terms of a negative evidence lower bound, nats, (B,) each.

    ``prior``: KL(q(z_1 | x) || p(z_1)), tutorial's "prior matching". ``reconstruction``: -log p(x | z_0).
    ``diffusion``: the sum of KLs between, "denoising matching" (for a VAE, the KLs between latents).
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """prior + reconstruction + diffusion."""
        return self.prior + self.reconstruction + self.diffusion


class DiffusionTerm(NamedTuple):
    """One-sample estimate of the diffusion term (B,) nats, where it was taken and its squared error."""

    nats: Tensor
    gamma: Tensor
    squared_error: Tensor


class Bound:
    """The variational bound of a denoiser under a schedule, in continuous time or T steps.

    Args:
        schedule: gamma(t); only its endpoints matter in continuous time.
        decoder: p(x | z_0).
        steps: T, or None for continuous time.

    Raises:
        ValueError: ``steps`` is below 1.
    """

    def __init__(self, schedule: Schedule, decoder, steps: int | None = None):
        if steps is not None and steps < 1:
            raise ValueError(f"bound.steps={steps}: null (continuous time) or a whole number from 1 is accepted")
        self.schedule, self.decoder, self.steps = schedule, decoder, steps

    def __call__(self, denoiser, x: Tensor, draw: Draw, condition: Tensor | None = None) -> Elbo:
        """One unbiased draw of the bound at x (B, *event), condition (B,) or None."""
        return self.terms(denoiser, x, draw, condition)[0]

    def terms(
        self, denoiser, x: Tensor, draw: Draw, condition: Tensor | None = None
    ) -> tuple[Elbo, DiffusionTerm]:
        """The bound, and with it the noise level and squared error behind its diffusion term."""
        ends = self.schedule.gamma(torch.tensor([0.0, 1.0], device=x.device))
        # 1. prior: what is left of x at t = 1
        prior = denoiser.process.prior_kl(x, ends[1])
        # 2. reconstruction: what is lost of x at t = 0
        z_0 = denoiser.process.diffuse(x, ends[0], draw.eps_0)
        reconstruction = self.decoder.nats(denoiser, x, z_0, ends[0], condition)
        # 3. diffusion: all that lies between
        diffusion = self.diffusion(denoiser, x, draw.t, draw.eps, condition)
        return Elbo(prior, reconstruction, diffusion.nats), diffusion

    def diffusion(
        self, denoiser, x: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None = None
    ) -> DiffusionTerm:
        r"""One draw of the diffusion term.

        Continuous (VDM eq. 17): 1/2 gamma'(t) |eps - eps_hat|^2. T steps (VDM eq. 13, tutorial eq. 99): the KL of one
        step chosen uniformly, times T; between two Gaussians of the posterior's variance it is
        1/2 (SNR_s - SNR_t) |x - x_hat|^2 = 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2.
        """
        if self.steps is None:
            gamma = self.schedule.gamma(t)
            weight = self.schedule.dgamma(t)
        else:
            upper = (torch.floor(t * self.steps) + 1).clamp(max=self.steps)
            gamma = self.schedule.gamma(upper / self.steps)
            weight = self.steps * torch.expm1(gamma - self.schedule.gamma((upper - 1) / self.steps))
        guess = denoiser(denoiser.process.diffuse(x, gamma, eps), gamma, condition)
        squared = guess.epsilon_error(x, eps).square().flatten(1).sum(1)
        return DiffusionTerm(0.5 * weight * squared, gamma, squared)
