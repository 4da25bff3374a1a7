import torch
from torch import Tensor

from ..condition import Condition
from ..protocol import AnyDenoiser
from .base import History, Sampler


class DPMSolver(Sampler):
    r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one call a step.

    In half log SNR, lambda = -gamma / 2, with steps h and before it h':
    z_s = (sigma_s / sigma_t) z + alpha_s (1 - e^{-h}) D with D = x_t + (h / 2 h') (x_t - x_before), x_t being
    the guessed x0. The first step has no predecessor and is DDIM's, D = x_t; so is the last, where going on
    in a line from few steps would overshoot the data. The method stays of second order.
    """

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
        z_s = guess.at(alpha, sigma)
        if history is None:
            return z_s
        if history.x0 is not None and history.gamma is not None and not history.last:
            ratio = (gamma_t - gamma_s) / (history.gamma - gamma_t)
            pull = -0.5 * alpha * ratio * torch.expm1(0.5 * (gamma_s - gamma_t))
            z_s.addcmul_(guess.x0 - history.x0, pull)
        history.gamma, history.x0 = gamma_t, guess.x0
        return z_s
