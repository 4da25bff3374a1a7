from torch import Tensor

from .base import Sampler


class Euler(Sampler):
    r"""Euler's method on dy/ds = epsilon: y_s = y_t + (s_s - s_t) eps_hat, first order.

    In z this is alpha_s x_hat + sigma_s eps_hat: DDIM with eta = 0 (Song et al. 2021, sec. 4.3), the step
    that ``Heun`` corrects.
    """

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        return denoiser(z, gamma_t, condition).at(*denoiser.process.alpha_sigma(gamma_s))
