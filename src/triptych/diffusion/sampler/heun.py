import torch
from torch import Tensor

from ..condition import Condition
from ..protocol import AnyDenoiser
from .base import History, Sampler


class Heun(Sampler):
    r"""Heun's method on dy/ds = epsilon (Karras et al. 2022, algorithm 1): second order, two calls a step.

    y_s = y_t + (s_s - s_t) (eps_t + eps_s) / 2, with eps_s taken at Euler's point.
    """

    calls = 2

    def step(
        self,
        denoiser: AnyDenoiser,
        z: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
        history: History | None = None,
    ) -> Tensor:
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        guess = denoiser(z, gamma_t, condition)
        euler = guess.at(alpha, sigma)
        again = denoiser(euler, gamma_s, condition)
        half = -0.5 * sigma * torch.expm1(0.5 * (gamma_t - gamma_s))  # alpha_s (s_s - s_t) / 2
        return torch.addcmul(euler, again.epsilon - guess.epsilon, half)
