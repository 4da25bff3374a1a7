"""Denoisers that wrap a denoiser and change its predictions.

Every sampler and every other wrapper can use them.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from triptych.declare import Gt, Le, Positive, declared

from .condition import Condition
from .prediction import Prediction
from .process import Process, expand_like
from .protocol import AnyDenoiser


class Wrapper(nn.Module):
    """A denoiser that wraps another denoiser.

    It has the process and conditions of the inner denoiser, unless a subclass changes them.

    Attributes:
        guides_latents: whether it may wrap a denoiser of latents.
        bound: for a threshold, the largest |x0| that it leaves unchanged.
    """

    process: Process
    has_likelihood = False
    guides_latents = False
    bound = 1.0

    def __init__(self, denoiser: AnyDenoiser):
        super().__init__()
        self.denoiser = denoiser
        self.process = denoiser.process
        self.conditions, self.conditional = denoiser.conditions, denoiser.conditional

    def left_out(self, parts: Sequence[str]) -> Sequence[str]:
        """Return those ``parts`` of a condition that some calls of the inner denoiser leave out."""
        return ()


@declared("threshold")
class StaticThreshold(Wrapper):
    """Clamp x0 to the data's range [-bound, bound] (Ho et al. 2020).

    Every reference sampler does this.
    """

    def __init__(self, denoiser: AnyDenoiser, bound: Positive = 1.0):
        super().__init__(denoiser)
        self.bound = bound

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        guess = self.denoiser(z, gamma, condition)
        return guess.moved("x0", guess.x0.clamp(-self.bound, self.bound))


@declared("threshold")
class DynamicThreshold(Wrapper):
    """Dynamic thresholding of x0 (Imagen, Saharia et al. 2022, sec. 2.3).

    x0 is clamped to [-s, s] and divided by s, where s = max(1, the ``quantile`` of |x0| in each
    sample). It keeps strong guidance from saturating pixels.
    """

    def __init__(self, denoiser: AnyDenoiser, quantile: Annotated[float, Gt(0), Le(1)] = 0.995):
        super().__init__(denoiser)
        self.quantile = quantile

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        guess = self.denoiser(z, gamma, condition)
        size = expand_like(
            guess.x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1.0), z
        )
        return guess.moved("x0", torch.clamp(guess.x0, -size, size) / size)
