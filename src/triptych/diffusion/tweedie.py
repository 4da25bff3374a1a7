r"""Tweedie's formula as a measurement (tutorial eq. 133): how far a posterior mean is from the true one.

E[x | z] = (z + sigma^2 grad log p(z)) / alpha. Where the truth is known, the distance between a model's
posterior mean and the oracle's is what training has left undone; the posterior's own spread E|x - E[x | z]|^2
is what no model removes.
"""

import math

import torch
from torch import Tensor

from .protocol import AnyDenoiser


def posterior_mean(score: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the posterior mean E[x | z] = (z + sigma^2 score) / alpha, (B, *event) (Tweedie's formula)."""
    return (z + sigma.square() * score) / alpha


@torch.no_grad()
def tweedie_errors(
    denoiser: AnyDenoiser, oracle: AnyDenoiser, x: Tensor, gammas: Tensor, generator: torch.Generator
) -> dict[str, list[float]]:
    """Measure mean squares per dimension at each gamma of ``gammas`` (G,), at points x (B, *event).

    Both are of one process. Returns "gamma"; "excess", model against oracle, and its standard error "stderr";
    "spread", the true posterior's variance.
    """
    figures: dict[str, list[float]] = {"gamma": gammas.tolist(), "excess": [], "stderr": [], "spread": []}
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
