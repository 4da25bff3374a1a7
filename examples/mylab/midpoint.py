"""A sampler: the midpoint rule for the probability flow ODE."""

import torch
from torch import Tensor

from triptych.diffusion.sampler import Sampler, Step


class Midpoint(Sampler):
    r"""The midpoint rule, of second order, with two calls of the denoiser per step.

    y_s = y_t + (s_s - s_t) epsilon(half way in log SNR), where
    y = z / alpha and s = sigma / alpha = e^{gamma / 2}, in which dy/ds = epsilon.
    """

    calls = 2

    def step(self, z: Tensor, at: Step) -> Tensor:
        half = 0.5 * (at.gamma_t + at.gamma_s)
        between = at.guess(z, at.gamma_t).at(*at.scales(half))
        slope = at.guess(between, half).epsilon
        (alpha_t, _), (alpha_s, _) = map(at.scales, (at.gamma_t, at.gamma_s))
        return alpha_s * (
            z / alpha_t + (torch.exp(at.gamma_s / 2) - torch.exp(at.gamma_t / 2)) * slope
        )
