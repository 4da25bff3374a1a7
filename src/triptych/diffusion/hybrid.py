"""iDDPM's hybrid loss (Nichol & Dhariwal 2021, eq. 16): the mean by one loss, the variance by the bound."""

import torch
from torch import Tensor

from .objective import Loss, Objective
from .reverse_variance import Learned, step_kl, step_of
from .schedule import Schedule
from .weighting import Weighting


class Hybrid(Objective):
    """loss = objective + ``vlb_weight`` * T KL(q(z_s | z_t, x) || N(stop-gradient(mean), V)), nats (B,).

    The stop keeps the bound's noisy gradient off the mean, which the plain objective trains; the variance
    learns from nothing else. iDDPM's weight of 0.001 goes with a mean over dimensions; with ELBO weighting
    both parts are nats of the same bound and 1 is natural.

    Args:
        space, weighting, steps: as ``Objective``'s, but steps is needed: V has no say in continuous time.
        vlb_weight: of the second part.

    Raises:
        ValueError: no ``steps``, or a weight that is not positive.
    """

    def __init__(self, space: str, weighting: Weighting, steps: int, vlb_weight: float = 1.0):
        super().__init__(space, weighting, steps)
        if steps is None:
            raise ValueError(
                "objective.steps=null: a learned reverse variance is trained at a whole number of steps"
            )
        if not vlb_weight > 0:
            raise ValueError(f"objective.vlb_weight={vlb_weight}: a positive number is accepted")
        self.vlb_weight = vlb_weight

    def __call__(
        self, denoiser, schedule: Schedule, x: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None = None
    ) -> Loss:
        """x, eps (B, *event); t (B,) in [0, 1); condition (B,) or None."""
        assert self.steps is not None
        process = denoiser.process
        gamma, lower = step_of(schedule, t, self.steps)
        slope = self.steps * torch.expm1(gamma - lower)
        guess = denoiser(process.diffuse(x, gamma, eps), gamma, condition)
        squares = guess.epsilon_error(x, eps).square()
        squared = squares.flatten(1).sum(1)
        with torch.no_grad():
            weight = self.weight(process, gamma, slope)
        log_ratio = Learned().log_ratio(process, gamma, lower, guess)
        kl = step_kl(squares.detach(), gamma, lower, log_ratio)
        return Loss(0.5 * weight * slope * squared + self.vlb_weight * self.steps * kl, gamma, squared)
