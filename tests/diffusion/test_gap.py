"""The gap by the excess over the exact denoiser, against the plain difference of bound and
truth."""

import math

import pytest
import torch
from torch import nn

from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.draws import Draw
from triptych.diffusion.gap import excess_gap
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.schedule import Linear

from .oracles import generator, ring_mixture


class Biased(nn.Module):
    """The oracle plus an error of known size in epsilon."""

    def __init__(self, oracle: Oracle, size: float):
        super().__init__()
        self.oracle, self.size, self.process = oracle, size, oracle.process

    def forward(self, z, gamma, condition=None):
        guess = self.oracle(z, gamma)
        wrong = guess.epsilon + self.size * torch.sin(3 * z)
        return Prediction("epsilon", wrong, z, guess.alpha, guess.sigma)


def both(schedule, process, size: float, n: int = 20_000, weight: float = 1.0):
    mixture, random = ring_mixture(), generator()
    denoiser = Biased(Oracle(mixture, process), size)
    x, _ = mixture.sample(n, random)
    draw = Draw(torch.rand(n, generator=random), *torch.randn(2, n, 2, generator=random))
    bound = Bound(schedule, GaussianDensity())(denoiser, x, draw).total.double()
    return bound + mixture.log_prob(x.double()), excess_gap(
        denoiser, schedule, mixture, x, draw, weight
    )


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()])
@pytest.mark.parametrize(("low", "high"), [(-10, 8), (-3, 1)])
def test_excess_estimates_gap_with_less_variance(low, high, process):
    for size in (0.0, 0.5):
        plain, excess = both(Linear(low, high), process, size)
        stderr = math.hypot(plain.std().item(), excess.std().item()) / math.sqrt(len(plain))
        assert (plain.mean() - excess.mean()).abs() < 3 * stderr
        assert excess.var() < 0.5 * plain.var()


def test_excess_weights_scale_diffusion_term_only():
    _, plain = both(Linear(-3, 1), VariancePreserving(), 0.5, n=50)
    ends, double = (
        both(Linear(-3, 1), VariancePreserving(), 0.5, 50, weight)[1] for weight in (0.0, 2.0)
    )
    torch.testing.assert_close(double - plain, plain - ends)
    assert (plain > ends).all()


def test_excess_of_oracle_is_zero_for_wide_endpoints():
    _, excess = both(Linear(-14, 14), VariancePreserving(), 0.0)
    assert excess.mean().abs() < 3 * excess.std() / math.sqrt(len(excess)) + 1e-4
    assert excess.std() < 0.05
