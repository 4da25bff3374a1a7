r"""Estimate how far a model's bound lies above the true -log p(x), with little variance.

Under the true mixture, the exact denoiser's continuous-time bound differs from -log p(x) only at
its two ends, so

    E[bound + log p(x)] = 1/2 int E|eps_hat - eps*|^2 dgamma    what the network has yet to learn
        + KL(p(z_1) || prior)                                   what is left of x at the noisy end
        + E KL(p(x | z_0) || N(z_0 / alpha_0, e^gamma_0))       what the decoder does not know

for data with a density (I-MMSE; Guo, Shamai & Verdu 2005, and Kingma et al. 2021). The first term
replaces |eps_hat - eps|^2, most of which no network can avoid: the mean gap is the same, with a
fraction of its variance.
"""

import math

import torch
from torch import Tensor

from .draws import Draw
from .mixture import GaussianMixture, Oracle
from .process import expand_like
from .protocol import AnyDenoiser
from .schedule import Schedule


def excess_gap(
    denoiser: AnyDenoiser,
    schedule: Schedule,
    mixture: GaussianMixture,
    x: Tensor,
    draw: Draw,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Return a one-sample estimate of the gap at x (B, d), nats (B,).

    It holds for continuous time, the decoder ``GaussianDensity`` and no condition. ``weight``: 1 /
    density of draw.t, (B,), if the times are not uniform.
    """
    process = denoiser.process
    low, high = schedule.ends(x.device)
    gamma = schedule.gamma(draw.t)
    z = process.diffuse(x, gamma, draw.eps)
    error = denoiser(z, gamma).epsilon - Oracle(mixture, process)(z, gamma).epsilon
    unlearnt = weight * 0.5 * schedule.dgamma(draw.t) * error.square().flatten(1).sum(1)
    # The end terms are in double: each is a small difference of log densities.
    x, eps = x.double(), draw.eps_0.double()
    alpha, sigma = (value.double() for value in process.alpha_sigma(expand_like(high, x)))
    std, z = process.prior_std(high).double(), alpha * x + sigma * eps
    prior = -0.5 * ((z / std).square() + torch.log(2 * math.pi * std.square())).flatten(1).sum(1)
    noisy = mixture.log_prob(z, alpha, sigma) - prior
    alpha, sigma = (value.double() for value in process.alpha_sigma(expand_like(low, x)))
    blurred = mixture.log_prob(alpha * x + sigma * eps, alpha, sigma) + x[0].numel() * torch.log(
        alpha
    )
    return unlearnt.double() + noisy + mixture.log_prob(x) - blurred
