"""The likelihood by the probability-flow ODE, against densities that are known exactly."""

import math

import pytest
import torch
from torch import nn

from triptych.diffusion.condition import Condition
from triptych.diffusion.decoder import Categorical
from triptych.diffusion.denoiser import Denoiser, Output, level_centres
from triptych.diffusion.draws import Stream, hash_seed
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import (
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from triptych.diffusion.schedule import Linear
from triptych.diffusion.wrappers import StaticThreshold

from .oracles import correlated, generator, refused, ring_mixture

VP = VariancePreserving()
WIDE = Linear(-14, 20)  # so wide that the model's density is the Gaussian's own


@pytest.mark.parametrize("process", [VP, VarianceExploding(), SubVariancePreserving(), Rectified()])
@pytest.mark.parametrize("d", [1, 16])
def test_exact_trace_gives_the_exact_density(d, process):
    mixture = GaussianMixture(*correlated(d))
    x, _ = mixture.sample(40, generator())
    found = Likelihood(WIDE)(Oracle(mixture, process), x)
    error = (found.total + mixture.log_prob(x.double())) / d
    assert error.abs().max() < 1e-3 and error.mean().abs() < 1e-4
    assert (found.stderr == 0).all()


def test_hutchinson_error_matches_stderr_and_falls_with_probes():
    mixture, n = GaussianMixture(*correlated(16)), 100
    x, _ = mixture.sample(n, generator(1))
    exact = -mixture.log_prob(x.double())
    errors, stderrs = [], []
    for probes in (4, 16):
        found = Likelihood(WIDE, probes=probes)(Oracle(mixture, VP), x)
        error = found.total - exact
        assert error.mean().abs() < 3 * found.stderr.square().sum().sqrt() / n
        errors.append(error.abs().mean().item())
        stderrs.append(found.stderr.mean().item())
        again = Likelihood(WIDE, probes=probes)(Oracle(mixture, VP), x[7:9], torch.tensor([7, 8]))
        # Probes follow from the item's index.
        assert torch.allclose(again.total, found.total[7:9], atol=1e-3)
    for figures in (errors, stderrs):
        assert figures[0] > 1.6 * figures[1]  # the expected ratio is 2
    # This is the stated error.
    assert errors[1] == pytest.approx(stderrs[1] * math.sqrt(2 / math.pi), rel=0.2)


def test_probes_and_noise_follow_from_seed_and_item():
    x, index, cpu = torch.zeros(2, 3), torch.tensor([7, 4]), torch.device("cpu")
    likelihood = Likelihood(WIDE, probes=5, dequantisation="uniform", levels=5, seed=2)
    probes, noise = likelihood._probes(x, index, cpu), likelihood._noise(x, index, cpu)
    for row, item in enumerate(index.tolist()):
        draw = torch.Generator().manual_seed(hash_seed(2, Stream.PROBES, item))
        signs = 2.0 * torch.randint(0, 2, (5, 3), generator=draw) - 1
        assert torch.equal(probes[:, row], signs)
        draw = torch.Generator().manual_seed(hash_seed(2, Stream.DEQUANTISATION, item))
        assert torch.equal(noise[row], torch.rand(3, generator=draw, dtype=torch.float64))


def test_likelihood_tolerance_holds_for_each_item_of_batch():
    mixture = ring_mixture()
    oracle = Oracle(mixture, VP)
    x, _ = mixture.sample(100, generator(1))
    x[0] = 0.0  # the most difficult point, between all modes
    found = Likelihood(WIDE)(oracle, x).total
    assert ((found + mixture.log_prob(x.double())) / 2).abs()[1:].max() < 2e-3
    # With the mean over the batch as error norm, some errors are 1e-3 here.
    finer = Likelihood(WIDE, tolerance=1e-7)(oracle, x).total
    assert (finer - found).abs().max() < 4e-4


def test_uniform_dequantisation_bound_matches_exact_probability():
    # Levels of a Gaussian with a nearly constant density over a cell: the bound is tight, and the
    # truth is a difference of Phi.
    levels, std, n = 65, 0.3, 2000
    mixture = GaussianMixture([1.0], [[0.0]], [[[std**2]]])
    centres = level_centres(levels).double()
    normal, half = torch.distributions.Normal(0.0, std), 1 / (levels - 1)
    mass = normal.cdf(centres + half) - normal.cdf(centres - half)
    k = torch.multinomial(mass, n, replacement=True, generator=generator())
    likelihood = Likelihood(WIDE, dequantisation="uniform", levels=levels)
    found = likelihood(Oracle(mixture, VP), centres[k, None].float())
    difference = found.total + mass[k].log()
    assert difference.mean().abs() < 3 * difference.std() / math.sqrt(n) + 1e-3
    assert torch.allclose(
        found.dequantisation, torch.tensor(-math.log(2 * half)).double(), atol=1e-5
    )


def test_lossless_dequantisation_matches_exact_probability():
    # Narrow modes on five levels: -log P(level) is known.
    weights, spread, n = torch.tensor([0.1, 0.3, 0.2, 0.35, 0.05]).double(), 1e-5, 3000
    centres = level_centres(5)
    mixture = GaussianMixture(weights, centres[:, None], torch.full((5, 1, 1), spread**2))
    k = torch.multinomial(weights, n, replacement=True, generator=generator())
    schedule = Linear(-6, 16)  # sigma_0 = .05, a fifth of the half spacing
    likelihood = Likelihood(schedule, dequantisation="lossless", decoder=Categorical(5))
    found = likelihood(Oracle(mixture, VP), centres[k, None])
    difference = found.total + weights[k].log()
    assert difference.mean().abs() < 3 * difference.std() / math.sqrt(n)
    entropy = 0.5 * math.log(2 * math.pi * math.e / (1 + math.exp(6)))
    assert torch.allclose(found.dequantisation, torch.tensor(-entropy).double())
    assert torch.allclose(found.total, found.density + found.dequantisation + found.reconstruction)


def test_likelihood_of_conditional_image_network_in_inference_mode():
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            one, other = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
            self.net = nn.Sequential(one, nn.GroupNorm(2, 4), nn.SiLU(), other)
            self.told = nn.Linear(2, 1)

        def forward(self, z, gamma, condition):
            shift = self.told(condition.parts["vector"].value).view(-1, 1, 1, 1)
            return self.net(z.contiguous(memory_format=torch.channels_last) + shift)

    denoiser = Denoiser(Small(), Output("epsilon"), VP).eval()
    x = torch.randn(3, 1, 4, 4)
    schedule = Linear(-4, 4)
    # These are inference tensors, as in the batches of a test run.
    with torch.inference_mode():
        condition = Condition(vector=torch.randn(3, 2))
        exact = Likelihood(schedule)(denoiser, x.clone(), condition=condition)
        estimate = Likelihood(schedule, probes=16)(denoiser, x.clone(), condition=condition)
    assert not exact.total.requires_grad
    assert ((estimate.total - exact.total).abs() < 4 * estimate.stderr).all()


def test_likelihood_refuses_threshold_and_missing_arguments():
    cut = StaticThreshold(Oracle(ring_mixture(), VP))
    refused(lambda: Likelihood(WIDE)(cut, torch.zeros(1, 2)), "StaticThreshold has no likelihood")
    for how, word in (("uniform", "levels"), ("lossless", "decoder")):
        refused(lambda how=how: Likelihood(WIDE, dequantisation=how), word)
