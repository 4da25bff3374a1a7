import torch
from torch import Tensor

from ..condition import Condition
from ..protocol import AnyDenoiser
from .base import History, Sampler


class Euler(Sampler):
    r"""Euler's method on dy/ds = epsilon: y_s = y_t + (s_s - s_t) eps_hat, first order.

    In z this is alpha_s x_hat + sigma_s eps_hat: DDIM with eta = 0 (Song et al. 2021, sec. 4.3), the step
    that ``Heun`` corrects.
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
        return denoiser(z, gamma_t, condition).at(*denoiser.process.alpha_sigma(gamma_s))
