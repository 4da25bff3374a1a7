r"""Objectives: what the network is asked for, and how its error is weighted over noise levels.

``loss = w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2`` in nats, whatever the output space, so that with the
ELBO weighting all objectives minimise the very same number (tutorial eqs. 99, 130, 148; VDM eq. 17).
"""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from triptych.declare import Count, Unit, declared

from .prediction import error_scale
from .process import Process
from .reverse_variance import step_of
from .schedule import Schedule
from .weighting import Weighting


class Loss(NamedTuple):
    """Per-sample loss in weighted nats (B,), the gammas (B,) and squared epsilon errors (B,), summed."""

    nats: Tensor
    gamma: Tensor
    squared_error: Tensor


@declared("objective")
class Objective:
    """Which output, which weighting.

    Args:
        space: the output's space, in which ``simple`` weighting is flat.
        weighting: w(gamma).
        steps: train at T discrete times, T expm1(gamma_t - gamma_s) standing for gamma'(t) (VDM eq. 13);
            None: continuous time.

    Raises:
        ValueError: ``steps`` is below 1.
    """

    def __init__(
        self, space: str, weighting: Weighting, steps: Annotated[Count | None, Unit("steps")] = None
    ):
        self.space, self.weighting, self.steps = space, weighting, steps

    def __call__(
        self, denoiser, schedule: Schedule, x: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None = None
    ) -> Loss:
        """x, eps (B, *event); t (B,) in [0, 1]; condition (B,) or None."""
        process = denoiser.process
        if self.steps is None:
            gamma, dgamma = schedule.gamma(t), schedule.dgamma(t)
        else:
            gamma, lower = step_of(schedule, t, self.steps)
            dgamma = self.steps * torch.expm1(gamma - lower)
        guess = denoiser(process.diffuse(x, gamma, eps), gamma, condition)
        squared = guess.epsilon_error(x, eps).square().flatten(1).sum(1)
        with torch.no_grad():
            weight = self.weight(process, gamma, dgamma)
        return Loss(0.5 * weight * dgamma * squared, gamma, squared)

    def weight(self, process: Process, gamma: Tensor, dgamma: Tensor) -> Tensor:
        """w at each gamma, any shape."""
        alpha, sigma = process.alpha_sigma(gamma)
        return self.weighting.weight(gamma, dgamma, error_scale(self.space, alpha, sigma).square())

    def effective_weight(self, process: Process, schedule: Schedule, gamma: Tensor) -> Tensor:
        """w(gamma) under a schedule, for a plot: what multiplies the bound's integrand."""
        return self.weight(process, gamma, schedule.dgamma(schedule.t_of(gamma)))
