"""Heun's method for the probability-flow ODE."""

import torch
from torch import Tensor

from .base import Sampler, Step


class Heun(Sampler):
    r"""Heun's method on dy/ds = epsilon (Karras et al. 2022, algorithm 1): second order, two calls a step.

    y_s = y_t + (s_s - s_t) (eps_t + eps_s) / 2, with eps_s taken at Euler's point.
    """

    calls = 2

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, sigma = at.process.alpha_sigma(at.gamma_s)
        guess = at.guess(z, at.gamma_t)
        euler = guess.at(alpha, sigma)
        again = at.guess(euler, at.gamma_s)
        half = -0.5 * sigma * torch.expm1(0.5 * (at.gamma_t - at.gamma_s))  # alpha_s (s_s - s_t) / 2
        return torch.addcmul(euler, again.epsilon - guess.epsilon, half)
