"""The interface of a denoiser."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn

from .condition import Condition, Kind
from .prediction import Prediction
from .process import Process


class AnyDenoiser(Protocol):
    """The interface of a denoiser, as samplers, bounds, likelihoods and guidance call it.

    It is a ``Denoiser``, an oracle, or a wrapper of one.

    Attributes:
        conditions: the parts of a condition that it reads, by name.
        conditional: whether it reads any part; without a condition it then predicts
            unconditionally.
        has_likelihood: whether its prediction is the score of a density; a guided or clipped
            prediction is not.
    """

    process: Process
    has_likelihood: bool

    @property
    def conditions(self) -> Mapping[str, Kind]: ...

    @property
    def conditional(self) -> bool: ...

    def __call__(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Predict x0 and noise at z (B, *event) and gamma (B,) or ().

        ``condition``: of B items, or None.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights; an oracle has none."""
