"""p(x | z) as a ladder's head gives it: a level of each dimension, or a density."""

import torch
from torch import Tensor, nn

from triptych.diffusion.denoiser import level_centres
from triptych.diffusion.noise import plain_noise
from triptych.diffusion.normal import Normal


class Observation:
    """Reads the head's numbers, raw (B, *shape) of one a dimension, else (B, outputs, *shape).

    Args:
        levels: number K of the data's levels, each with a logit; None for a Gaussian's mean and log std.
    """

    def __init__(self, levels: int | None):
        self.centres = None if levels is None else level_centres(levels)

    @staticmethod
    def outputs(levels: int | None) -> int:
        """Numbers per dimension of x that the head gives: one logit a level, or mean and log std."""
        return levels or 2

    def nats(self, x: Tensor, raw: Tensor) -> Tensor:
        """-log p(x | z), nats (B,)."""
        if self.centres is None:
            return -density(raw).log_prob(x)
        k = ((x + 1) * ((len(self.centres) - 1) / 2)).round().long()
        return nn.functional.cross_entropy(raw, k, reduction="none").flatten(1).sum(1)

    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z] (B, *shape)."""
        if self.centres is None:
            return density(raw).mean
        return torch.einsum("bk...,k->b...", raw.softmax(1), self.centres.to(raw))

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """x ~ p(x | z), (B, *shape)."""
        if self.centres is None:
            p = density(raw)
            return p.at(plain_noise(generator)(p.mean.shape).to(raw))
        uniform = torch.rand(raw.shape, generator=generator, device=generator.device).to(raw)
        level = (raw - torch.log(-torch.log(uniform))).argmax(1)  # Gumbel: one draw a dimension
        return self.centres.to(raw)[level]


def density(raw: Tensor) -> Normal:
    """Return a head's two numbers per dimension, (B, 2, *shape), as a Gaussian over x (B, *shape)."""
    mean, log_std = raw.unbind(1)
    return Normal(mean, torch.exp(log_std))
