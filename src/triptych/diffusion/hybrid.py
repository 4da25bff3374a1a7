"""iDDPM's hybrid loss (Nichol & Dhariwal 2021, eq. 16): the mean by one loss, the variance by the bound."""

import math

import torch
from torch import Tensor

from triptych.declare import Positive

from .objective import Loss, Objective
from .reverse_variance import Learned, step_kl, step_of
from .schedule import Schedule
from .weighting import Elbo, Sigmoid, Simple, Weighting

IDDPM = 1e-3 / math.log(2)  # their 0.001, of bits, beside a squared error; sum or mean over dimensions alike


class Hybrid(Objective):
    """loss = objective + ``vlb_weight`` * T KL(q(z_s | z_t, x) || N(stop-gradient(mean), V)), nats (B,).

    The stop keeps the bound's noisy gradient off the mean, which the plain objective trains; the variance
    learns from nothing else. iDDPM's L_simple + 0.001 L_vlb is the mean over dimensions of |eps - eps_hat|^2
    and of T KL in bits: in sums and nats, ``simple`` weighting with 0.001 / ln 2 = 0.00144. With weightings
    relative to the bound (elbo, sigmoid) both parts are nats of the same bound and 1 is natural.

    Args:
        space, weighting, steps: as ``Objective``'s, but steps is needed: V has no say in continuous time.
        vlb_weight: of the second part; None: 0.001 / ln 2 with simple, 1 with elbo and sigmoid weighting.

    Raises:
        ValueError: no ``steps``, a weight that is not positive, or none with another weighting.
    """

    def __init__(self, space: str, weighting: Weighting, steps: int, vlb_weight: Positive | None = None):
        super().__init__(space, weighting, steps)
        if steps is None:
            raise ValueError(
                "objective.steps=null: a learned reverse variance is trained at a whole number of steps"
            )
        if vlb_weight is None:
            vlb_weight = _natural(weighting)
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
