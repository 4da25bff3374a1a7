import torch
from torch import Tensor

from .base import Sampler, noise_like


class Ancestral(Sampler):
    r"""p(z_s | z_t) = q(z_s | z_t, x = x_hat): the generative model whose bound we report (tutorial eq. 93).

    ``Process.posterior`` written in x_hat and eps_hat, with q = e^{gamma_s - gamma_t}:
    mean alpha_s x_hat + sigma_s sqrt(q) eps_hat, variance sigma_s^2 (1 - q).
    """

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None, history=None) -> Tensor:
        guess = denoiser(z, gamma_t, condition)
        alpha, sigma = denoiser.process.alpha_sigma(gamma_s)
        mean = guess.at(alpha, sigma * torch.exp(0.5 * (gamma_s - gamma_t)))
        std = sigma * torch.sqrt(-torch.expm1(gamma_s - gamma_t))
        return mean.addcmul_(noise_like(z, generator), std)
