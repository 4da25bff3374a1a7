"""The interface of a denoiser."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from .condition import Condition
from .prediction import Prediction
from .process import Process


class AnyDenoiser(Protocol):
    """The denoiser that samplers, bounds, likelihoods and guidance take.

    It may be a ``Denoiser``, an oracle or a wrapper of one of these.
    """

    process: Process

    def __call__(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Predict x0 and noise at z (B, *event) and gamma (B,) or ().

        ``condition``: of B items, or None.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; an oracle has none."""
