r"""The variational bound -log p(x) <= prior + reconstruction + diffusion, in nats.

Luo 2022, eq. 58; VDM (Kingma et al. 2021), eq. 12. Every run reports this bound, whatever its
training loss.
"""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from triptych.declare import Steps, declared

from .condition import Condition
from .decoder import Decoder
from .draws import Draw
from .protocol import AnyDenoiser
from .reverse_variance import (
    NODES,
    BetaTilde,
    Optimal,
    ReverseVariance,
    as_variance,
    step_kl,
    step_of,
)
from .schedule import Schedule

Continuous = Annotated[None, "continuous time"]  # the text that reports show for null


class BoundTerms(NamedTuple):
    """The three terms of a negative evidence lower bound, nats, (B,) each.

    ``prior``: KL(q(z_1 | x) || p(z_1)), called "prior matching" in Luo 2022. ``reconstruction``:
    -log p(x | z_0). ``diffusion``: the sum of the KLs of all steps between, called "denoising
    matching" (for a VAE, the KLs between latents).
    """

    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the three terms."""
        return self.prior + self.reconstruction + self.diffusion


class DiffusionTerm(NamedTuple):
    """One-sample estimate of the diffusion term, (B,) each.

    ``nats``: the estimate. ``gamma``: the levels at which it was drawn. ``squared_error``: its
    squared epsilon errors, summed over dimensions.
    """

    nats: Tensor
    gamma: Tensor
    squared_error: Tensor


@declared("bound")
class Bound:
    """The variational bound of a denoiser under a schedule, in continuous time or T steps.

    Args:
        schedule: gamma(t); in continuous time only its endpoints matter.
        decoder: p(x | z_0).
        steps: T, or None for continuous time, in which ``variance`` has no effect.
        variance: variance of a reverse step, as an object or its short name ("beta", "optimal",
            ...).
    """

    def __init__(
        self,
        schedule: Schedule,
        decoder: Decoder,
        steps: Steps | Continuous = None,
        variance: ReverseVariance | str = "beta_tilde",
    ):
        self.variance = as_variance(variance, "bound.variance")
        if steps is None and not isinstance(self.variance, BetaTilde):
            names = {kind: name for name, kind in ReverseVariance.named.items()}
            name = names.get(type(self.variance), type(self.variance).__name__)
            raise ValueError(
                f"bound.variance={name}: needs discrete steps; set bound.steps=T, or use beta_tilde"
            )
        self.schedule, self.decoder, self.steps = schedule, decoder, steps

    def __call__(
        self, denoiser: AnyDenoiser, x: Tensor, draw: Draw, condition: Condition | None = None
    ) -> BoundTerms:
        """Return an unbiased one-sample estimate of the bound at x (B, *event).

        ``condition``: of B items, or None.
        """
        prior, reconstruction = self.ends(denoiser, x, draw.eps_0, condition)
        return BoundTerms(
            prior, reconstruction, self.diffusion(denoiser, x, draw.t, draw.eps, condition).nats
        )

    def ends(
        self, denoiser: AnyDenoiser, x: Tensor, eps_0: Tensor, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the prior term and the reconstruction term, nats (B,) each.

        They are the bound's terms at t = 1 and at t = 0.
        """
        low, high = self.schedule.ends(x.device)
        return denoiser.process.prior_kl(x, high), self.decoder.draw(
            denoiser, x, eps_0, low, condition
        )

    def diffusion(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None = None,
    ) -> DiffusionTerm:
        """Return a one-sample estimate of the diffusion term.

        Continuous time (VDM eq. 17): 1/2 gamma'(t) |eps - eps_hat|^2. T steps (VDM eq. 13; Luo
        2022, eq. 99): T times the KL of one step that is chosen uniformly. With beta tilde that KL
        is 1/2 (SNR_s - SNR_t) |x - x_hat|^2 = 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2; for
        other variances see ``reverse_variance``.
        """
        process = denoiser.process
        if self.steps is None:
            gamma = self.schedule.gamma(t)
        else:
            upper, lower = step_of(self.schedule, t, self.steps)
            gamma = upper.to(x)
        guess = denoiser(process.diffuse(x, gamma, eps), gamma, condition)
        squares = guess.epsilon_error(x, eps).square()
        squared = squares.flatten(1).sum(1)
        if self.steps is None:
            nats = 0.5 * self.schedule.dgamma(t) * squared
        else:
            log_ratio = self.variance.log_ratio(process, upper, lower, guess)
            nats = self.steps * step_kl(squares, upper, lower, log_ratio)
        return DiffusionTerm(nats, gamma, squared)

    def rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma at t and the factor that turns a squared epsilon error to nats, (B,) each.

        In discrete time the factor is that of beta tilde.
        """
        if self.steps is None:
            return self.schedule.gamma(t), 0.5 * self.schedule.dgamma(t)
        gamma, lower = step_of(self.schedule, t, self.steps)
        return gamma.to(t), (0.5 * self.steps * torch.expm1(gamma - lower)).to(t)

    def calibrate(
        self, denoiser: AnyDenoiser, x: Tensor, seed: int = 0, condition: Condition | None = None
    ) -> None:
        """Measure the denoiser's error, which an optimal reverse variance needs.

        Pass items on which no result is reported. The error is measured at the upper ends of the T
        steps, or at ``NODES`` evenly spaced gammas if there are more steps. Other variances need no
        measurement.
        """
        if self.steps is not None and isinstance(self.variance, Optimal):
            few = self.steps <= NODES
            t = (
                torch.arange(1, self.steps + 1) / self.steps
                if few
                else torch.linspace(0, 1, NODES + 1)
            )
            self.variance.measure(denoiser, self.schedule.gamma(t.to(x)), x, seed, condition)
