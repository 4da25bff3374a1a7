"""DPM-Solver++ (Lu et al. 2022)."""

import torch
from torch import Tensor

from .base import Sampler, Step


class DPMSolver(Sampler):
    r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one call a step.

    In half log SNR, lambda = -gamma / 2, with steps h and before it h':
    z_s = (sigma_s / sigma_t) z + alpha_s (1 - e^{-h}) D with D = x_t + (h / 2 h') (x_t - x_before), x_t being
    the guessed x0. The first step has no predecessor and is DDIM's, D = x_t; so is the last, where going on
    in a line from few steps would overshoot the data. The method stays of second order.
    """

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, sigma = at.process.alpha_sigma(at.gamma_s)
        guess = at.guess(z, at.gamma_t)
        z_s = guess.at(alpha, sigma)
        before = at.history
        if before.x0 is not None and before.gamma is not None and not at.last:
            ratio = (at.gamma_t - at.gamma_s) / (before.gamma - at.gamma_t)
            pull = -0.5 * alpha * ratio * torch.expm1(0.5 * (at.gamma_s - at.gamma_t))
            z_s.addcmul_(guess.x0 - before.x0, pull)
        before.gamma, before.x0 = at.gamma_t, guess.x0
        return z_s
