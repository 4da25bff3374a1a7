"""EDM's stochastic sampler (Karras et al. 2022, algorithm 2)."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from triptych.declare import NonNegative, Positive

from .base import Step
from .heun import Heun


class EDM(Heun):
    r"""EDM's stochastic sampler (Karras et al. 2022, algorithm 2): a little fresh noise, then Heun's step.

    With their sigma as s = sigma / alpha = e^{gamma / 2}: where low <= s <= high, s is first raised to
    s' = s (1 + min(churn / steps, sqrt 2 - 1)), y' = y + noise sqrt(s'^2 - s^2) N(0, I), and Heun's step
    leads from there. Without churn it is ``Heun``. Theirs ends with an Euler step to sigma = 0, ours at the
    schedule's end, as every sampler here.

    Args:
        churn, noise: their S_churn and S_noise.
        low, high: their S_tmin and S_tmax, of sigma / alpha; None: no limit.

    Raises:
        ValueError: ``noise`` is not positive, ``churn`` or ``low`` negative, ``high`` not above ``low``.
    """

    def __init__(
        self,
        steps: int,
        grid: str = "karras",
        churn: NonNegative = 0.0,
        noise: Positive = 1.0,
        low: NonNegative = 0.0,
        high: Positive | None = None,
        **options: Any,
    ):
        super().__init__(steps, grid, **options)
        if high is not None and high <= low:
            raise ValueError(f"sampler.low={low} and sampler.high={high}: must be low < high, or null")
        self.churn, self.noise = churn, noise
        self.low, self.high = low, math.inf if high is None else high
        self.raised = min(churn / steps, math.sqrt(2) - 1)  # their gamma_i, less 1

    def step(self, z: Tensor, at: Step) -> Tensor:
        if self.raised:
            s = torch.exp(0.5 * at.gamma_t)
            inside = (self.low <= s) & (s <= self.high)  # asked of no number: nothing waits for the device
            more = at.gamma_t + inside.to(s) * (2 * math.log1p(self.raised))
            (alpha, sigma), (before, _) = map(at.process.alpha_sigma, (more, at.gamma_t))
            fresh = self.noise * sigma * torch.sqrt(-torch.expm1(at.gamma_t - more))
            z = (alpha / before * z).addcmul_(at.noise(z), fresh)
            at = replace(at, gamma_t=more)
        return super().step(z, at)
