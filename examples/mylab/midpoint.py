"""A sampler: the midpoint rule on the probability flow."""

import torch
from torch import Tensor

from triptych.diffusion.sampler import Sampler


class Midpoint(Sampler):
    r"""y_s = y_t + (s_s - s_t) epsilon(half way in log SNR): second order, two calls a step.

    y = z / alpha and s = sigma / alpha = e^{gamma / 2}, in which dy/ds = epsilon.
    """

    calls = 2

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        half = 0.5 * (gamma_t + gamma_s)
        between = denoiser(z, gamma_t, condition).at(*denoiser.process.alpha_sigma(half))
        slope = denoiser(between, half, condition).epsilon
        (alpha_t, _), (alpha_s, _) = map(denoiser.process.alpha_sigma, (gamma_t, gamma_s))
        return alpha_s * (z / alpha_t + (torch.exp(gamma_s / 2) - torch.exp(gamma_t / 2)) * slope)
