r"""Tweedie's formula as a measurement (tutorial eq. 133): how far a posterior mean is from the true one.

E[x | z] = (z + sigma^2 grad log p(z)) / alpha. Where the truth is known, the distance between a model's
posterior mean and the oracle's is what training has left undone; the posterior's own spread E|x - E[x | z]|^2
is what no model removes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .protocol import AnyDenoiser


class TweedieError(NamedTuple):
    """Mean squares per dimension at one gamma.

    ``excess``: model against oracle, with its standard error; ``spread``: the true posterior's variance.
    """

    gamma: float
    excess: float
    stderr: float
    spread: float


def posterior_mean(score: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the posterior mean E[x | z] = (z + sigma^2 score) / alpha, (B, *event) (Tweedie's formula)."""
    return (z + sigma.square() * score) / alpha


@torch.no_grad()
def tweedie_errors(
    denoiser: AnyDenoiser, oracle: AnyDenoiser, x: Tensor, gammas: Tensor, generator: torch.Generator
) -> list[TweedieError]:
    """Measure a row for each gamma of ``gammas`` (G,) at points x (B, *event); both of one process."""
    rows = []
    for gamma in gammas:
        eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        z = oracle.process.diffuse(x, gamma, eps)
        alpha, sigma = oracle.process.alpha_sigma(gamma)
        true = oracle(z, gamma).x0
        model = posterior_mean(denoiser(z, gamma).score, z, alpha, sigma)
        excess = (model - true).square().flatten(1).mean(1).double()
        spread = (x - true).square().flatten(1).mean(1).double()
        stderr = excess.std().item() / math.sqrt(len(x))
        rows.append(TweedieError(gamma.item(), excess.mean().item(), stderr, spread.mean().item()))
    return rows
