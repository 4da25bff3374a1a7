r"""Measure a model's error in the posterior mean by Tweedie's formula (Luo 2022, eq. 133).

E[x | z] = (z + sigma^2 grad log p(z)) / alpha. If the true distribution is known, the distance
between the posterior means of the model and of the oracle is the error that more training could
remove. No model removes the spread of the posterior itself, E|x - E[x | z]|^2.
"""

import math

import torch
from torch import Tensor

from .protocol import AnyDenoiser


def posterior_mean(score: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the posterior mean E[x | z] from the score, by Tweedie's formula.

    (z + sigma^2 score) / alpha, (B, *event).
    """
    return (z + sigma.square() * score) / alpha


@torch.no_grad()
def tweedie_errors(
    denoiser: AnyDenoiser,
    oracle: AnyDenoiser,
    x: Tensor,
    gammas: Tensor,
    generator: torch.Generator,
) -> dict[str, list[float]]:
    """Measure the model's mean squared error against the oracle at each of ``gammas`` (G,).

    At points x (B, *event), per dimension; both denoisers have the same process. Returns "gamma";
    "excess", the error, and its standard error "stderr"; "spread", the variance of the true
    posterior.
    """
    figures: dict[str, list[float]] = {
        "gamma": gammas.tolist(),
        "excess": [],
        "stderr": [],
        "spread": [],
    }
    for gamma in gammas:
        eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        z = oracle.process.diffuse(x, gamma, eps)
        alpha, sigma = oracle.process.alpha_sigma(gamma)
        true = oracle(z, gamma).x0
        model = posterior_mean(denoiser(z, gamma).score, z, alpha, sigma)
        excess = (model - true).square().flatten(1).mean(1).double()
        spread = (x - true).square().flatten(1).mean(1).double()
        figures["excess"].append(excess.mean().item())
        figures["stderr"].append(excess.std().item() / math.sqrt(len(x)))
        figures["spread"].append(spread.mean().item())
    return figures
