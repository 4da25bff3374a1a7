"""A diagonal Gaussian: samples, log density and KL, in nats summed over dimensions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Normal(NamedTuple):
    """The Gaussian N(mean, std^2); mean and std broadcast against the variable (B, *event)."""

    mean: Tensor
    std: Tensor

    def at(self, eps: Tensor) -> Tensor:
        """Return mean + std eps: a sample, for eps ~ N(0, I) (B, *event)."""
        return self.mean + self.std * eps

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density at z, nats (B,)."""
        square = ((z - self.mean) / self.std).square()
        return -(0.5 * (square + math.log(2 * math.pi)) + torch.log(self.std)).flatten(1).sum(1)

    def kl(self, other: "Normal") -> Tensor:
        """Return KL(self || other), nats, (B,)."""
        ratio = (self.std / other.std).square()
        offset = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio - 1 - torch.log(ratio) + offset).flatten(1).sum(1)
