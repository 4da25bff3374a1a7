"""A denoiser trained under one process, used under another: same log SNR, another scale.

``z' = alpha' x + sigma' eps`` at the same gamma is ``z`` times ``alpha' / alpha``, so x0 and epsilon are the
very same guess and only the input is rescaled. The schedule needs no such care: it only decides which gammas
are visited.
"""

from torch import Tensor

from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import Process, expand
from triptych.diffusion.wrappers import Wrapper


class Reprocessed(Wrapper):
    """``denoiser``, called at points of ``process`` instead of its own.

    Args:
        denoiser: trained under ``denoiser.process``.
        process: the process under which samplers, bounds and likelihoods shall see it.
    """

    def __init__(self, denoiser, process: Process):
        super().__init__(denoiser)
        self.process = process

    @property
    def has_likelihood(self) -> bool:
        """As the denoiser's: the guess is the same, seen from another scale."""
        return getattr(self.denoiser, "has_likelihood", False)

    def forward(self, z: Tensor, gamma: Tensor, condition: Tensor | None = None) -> Prediction:
        """z (B, *event) of the new process; the score there is alpha / alpha' times the old one."""
        level = expand(gamma, z)
        alpha, sigma = self.process.alpha_sigma(level)
        before, _ = self.denoiser.process.alpha_sigma(level)
        guess = self.denoiser(z * (before / alpha), gamma, condition)
        factor = {"score": before / alpha, "v": alpha / before}
        value = getattr(guess, guess.space)
        if guess.space in factor:
            value = value * factor[guess.space]
        return Prediction(guess.space, value, z, alpha, sigma)
