r"""Objectives: what the network is asked for, and how its error is weighted over noise levels.

``loss = w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2`` in nats, whatever the output space, so that with the
ELBO weighting all objectives minimise the very same number (tutorial eqs. 99, 130, 148; VDM eq. 17).
"""

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from triptych.declare import Count, Positive, Unit, declared

from .condition import Condition
from .prediction import Space, error_scale
from .process import Process
from .protocol import AnyDenoiser
from .reverse_variance import ReverseVariance, as_variance, step_kl, step_of
from .schedule import Schedule
from .weighting import Elbo, Sigmoid, Simple, Weighting

IDDPM = 1e-3 / math.log(2)  # their 0.001, of bits, beside a squared error; sum or mean over dimensions alike


class Loss(NamedTuple):
    """Per-sample loss in weighted nats (B,), the gammas (B,) and squared epsilon errors (B,), summed."""

    nats: Tensor
    gamma: Tensor
    squared_error: Tensor


@declared("objective")
class Objective:
    r"""Which output, which weighting; a learned reverse variance adds its own term.

    That is iDDPM's hybrid loss (Nichol & Dhariwal 2021, eq. 16), ``vlb_weight`` * T KL(q(z_s | z_t, x) ||
    N(stop-gradient(mean), V)): the stop keeps the bound's noisy gradient off the mean, and V learns from
    nothing else. Their L_simple + 0.001 L_vlb is the mean over dimensions of |eps - eps_hat|^2 and of T KL in
    bits: in sums and nats, ``simple`` weighting with 0.001 / ln 2 = 0.00144. With weightings relative to the
    bound (elbo, sigmoid) both parts are nats of the same bound and 1 is natural.

    Args:
        output: what the network gives, or the name of its space, in which ``simple`` weighting is flat.
        weighting: w(gamma).
        steps: train at T discrete times, T expm1(gamma_t - gamma_s) standing for gamma'(t) (VDM eq. 13);
            None: continuous time, in which V has no say.
        vlb_weight: of a learned variance's term; None: 0.001 / ln 2 with simple, 1 with elbo and sigmoid.
        variance: of the bound's reverse steps.

    Raises:
        ValueError: ``steps`` is below 1; with a learned variance none, a weight that is not positive, or
            none with another weighting.
    """

    def __init__(
        self,
        output: nn.Module | Space | str,
        weighting: Weighting,
        steps: Annotated[Count | None, Unit("steps")] = None,
        vlb_weight: Positive | None = None,
        variance: ReverseVariance | str = "beta_tilde",
    ):
        self.space: str | Space = output if isinstance(output, str | Space) else output.space  # type: ignore[assignment]
        self.weighting, self.steps = weighting, steps
        self.variance = as_variance(variance, "variance")
        if self.variance.learned:
            if steps is None:
                raise ValueError(
                    "objective.steps=null: a learned reverse variance is trained at a whole number of steps"
                )
            self.vlb_weight = _natural(weighting) if vlb_weight is None else vlb_weight

    def __call__(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None = None,
    ) -> Loss:
        """x, eps (B, *event); t (B,) in [0, 1]; condition of B items or None."""
        process = denoiser.process
        if self.steps is None:
            gamma, dgamma = schedule.gamma(t), schedule.dgamma(t)
        else:
            gamma, lower = step_of(schedule, t, self.steps)
            dgamma = self.steps * torch.expm1(gamma - lower)
        guess = denoiser(process.diffuse(x, gamma, eps), gamma, condition)
        squares = guess.epsilon_error(x, eps).square()
        squared = squares.flatten(1).sum(1)
        with torch.no_grad():
            weight = self.weight(process, gamma, dgamma)
        nats = 0.5 * weight * dgamma * squared
        if self.variance.learned and self.steps is not None:
            log_ratio = self.variance.log_ratio(process, gamma, lower, guess)
            kl = step_kl(squares.detach(), gamma, lower, log_ratio)
            nats = nats + self.vlb_weight * self.steps * kl
        return Loss(nats, gamma, squared)

    def weight(self, process: Process, gamma: Tensor, dgamma: Tensor) -> Tensor:
        """w at each gamma, any shape."""
        alpha, sigma = process.alpha_sigma(gamma)
        return self.weighting.weight(gamma, dgamma, error_scale(self.space, alpha, sigma).square())

    def effective_weight(self, process: Process, schedule: Schedule, gamma: Tensor) -> Tensor:
        """w(gamma) under a schedule, for a plot: what multiplies the bound's integrand."""
        return self.weight(process, gamma, schedule.dgamma(schedule.t_of(gamma)))


def _natural(weighting: Weighting) -> float:
    if isinstance(weighting, Simple):
        return IDDPM
    if isinstance(weighting, Elbo | Sigmoid):
        return 1.0
    name = type(weighting).__name__
    raise ValueError(
        f"objective.vlb_weight=null with {name} weighting: a positive number is accepted; null goes with "
        "objective/weighting=elbo, sigmoid, simple"
    )
