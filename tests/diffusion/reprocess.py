"""A denoiser trained under one process, used under another: same log SNR, another scale.

``z' = alpha' x + sigma' eps`` at the same gamma is ``z`` times ``alpha' / alpha``, so x0 and epsilon are the
very same guess and only the input is rescaled. The schedule needs no such care: it only decides which gammas
are visited.
"""

from typing import Any

from torch import Tensor

from triptych.diffusion.condition import Condition
from triptych.diffusion.prediction import Prediction, error_scale
from triptych.diffusion.process import Process, expand
from triptych.diffusion.wrappers import Wrapper


class Reprocessed(Wrapper):
    """``denoiser``, called at points of ``process`` instead of its own.

    Args:
        denoiser: trained under ``denoiser.process``.
        process: the process under which samplers, bounds and likelihoods shall see it.
    """

    def __init__(self, denoiser: Any, process: Process):
        super().__init__(denoiser)
        self.process = process

    @property
    def has_likelihood(self) -> bool:
        """As the denoiser's: the guess is the same, seen from another scale."""
        return getattr(self.denoiser, "has_likelihood", False)

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """z (B, *event) of the new process; the score there is alpha / alpha' times the old one.

        A space is a function of gamma up to a factor, which is the ratio of its error scales.
        """
        level = expand(gamma, z)
        alpha, sigma = self.process.alpha_sigma(level)
        before = self.denoiser.process.alpha_sigma(level)
        guess = self.denoiser(z * (before[0] / alpha), gamma, condition)
        factor = error_scale(guess.own, alpha, sigma) / error_scale(guess.own, *before)
        return Prediction(guess.own, guess.value * factor, z, alpha, sigma)
