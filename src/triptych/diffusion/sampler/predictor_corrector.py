"""Predictor-corrector sampling (Song et al. 2021)."""

from typing import Any

from torch import Tensor

from triptych.declare import Count, Positive

from ..langevin import langevin
from .ancestral import Ancestral
from .base import Step


class PredictorCorrector(Ancestral):
    r"""Song et al. 2021 (SDE, algorithm 1): an ancestral step, then ``inner`` Langevin updates where it led.

    Their corrector (algorithm 4) is z + e score + sqrt(2 e) noise, e = 2 (snr |noise| / |score|)^2, which is
    2 snr^2 sigma^2 where the score has its typical length sqrt(d) / sigma. We take that everywhere, so that
    no sample's step depends on the batch it came in. ``langevin``'s size, whose half multiplies the score, is
    2 e. The factor 1 - beta_i of algorithm 5 (VP), at least .98 on their grid of 1000, is left out.

    Args:
        variance: of the ancestral step, see there.

    Raises:
        ValueError: ``inner`` below 1, ``snr`` not positive.
    """

    def __init__(
        self, steps: int, grid: str = "gamma", inner: Count = 1, snr: Positive = 0.16, **options: Any
    ):
        super().__init__(steps, grid, **options)
        self.inner, self.snr = inner, snr
        self.calls = 1 + inner

    def step(self, z: Tensor, at: Step) -> Tensor:
        z = super().step(z, at)
        _, sigma = at.process.alpha_sigma(at.gamma_s)
        size = 4 * self.snr**2 * sigma.square()
        return langevin(lambda z: at.guess(z, at.gamma_s).score, z, size, self.inner, at.generator)
