"""What the mathematics asks of a denoiser."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from .condition import Condition
from .prediction import Prediction
from .process import Process


class AnyDenoiser(Protocol):
    """What samplers, bounds, likelihoods and guidance take: a ``Denoiser``, an oracle, a wrapper of one."""

    process: Process

    def __call__(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Predict x0 and noise at z (B, *event), gamma (B,) or (), condition of B items or None."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return its weights; an oracle has none."""
