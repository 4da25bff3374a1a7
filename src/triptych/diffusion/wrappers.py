"""Denoisers that wrap a denoiser: what is done to a guess, every sampler and every other wrapper can use."""

import torch
from torch import Tensor, nn

from .condition import Condition
from .prediction import Prediction
from .process import Process
from .protocol import AnyDenoiser


def is_conditional(denoiser: AnyDenoiser) -> bool:
    """Whether the denoiser was trained to be told conditions, and without one answers for all."""
    return bool(getattr(denoiser, "conditional", False))


def of_same_width(source: Prediction, guess: Prediction) -> Prediction:
    """``guess`` with the learned reverse variance of ``source``: a push moves a step's mean, not its width.

    So do Dhariwal & Nichol 2021 and GLIDE (Nichol et al. 2022) with guidance and clipping.
    """
    guess.fraction = source.fraction
    return guess


class Wrapper(nn.Module):
    """A denoiser around a denoiser: same process, same conditioning, unless a subclass says otherwise."""

    process: Process

    def __init__(self, denoiser: AnyDenoiser):
        super().__init__()
        self.denoiser = denoiser
        self.process = denoiser.process
        self.conditional = is_conditional(denoiser)


class StaticThreshold(Wrapper):
    """x0 clamped to [-bound, bound], the data's range (Ho et al. 2020, in every reference sampler).

    Raises:
        ValueError: ``bound`` is not positive.
    """

    def __init__(self, denoiser: AnyDenoiser, bound: float = 1.0):
        if not bound > 0:
            raise ValueError(f"threshold.bound={bound}: a positive number is accepted")
        super().__init__(denoiser)
        self.bound = bound

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        guess = self.denoiser(z, gamma, condition)
        x0 = guess.x0.clamp(-self.bound, self.bound)
        return of_same_width(guess, Prediction("x0", x0, z, guess.alpha, guess.sigma))


class DynamicThreshold(Wrapper):
    """x0 clamped to [-s, s] and divided by s, s = max(1, the ``quantile`` of |x0| in each sample).

    Saharia et al. 2022 (Imagen, sec. 2.3): keeps strong guidance from saturating pixels.

    Raises:
        ValueError: ``quantile`` outside (0, 1].
    """

    def __init__(self, denoiser: AnyDenoiser, quantile: float = 0.995):
        if not 0 < quantile <= 1:
            raise ValueError(f"threshold.quantile={quantile}: a number in (0, 1] is accepted")
        super().__init__(denoiser)
        self.quantile = quantile

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        guess = self.denoiser(z, gamma, condition)
        size = guess.x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1.0)
        size = size.view(-1, *(1,) * (z.ndim - 1))
        x0 = torch.clamp(guess.x0, -size, size) / size
        return of_same_width(guess, Prediction("x0", x0, z, guess.alpha, guess.sigma))
