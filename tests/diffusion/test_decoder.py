"""Decoders: probabilities that sum to one, and the formulas that define them, in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, Normal

from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import Categorical, DiscretisedGaussian, GaussianDensity
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.schedule import Linear

from .oracles import Wrong, generator, network, normal

every_k = pytest.mark.parametrize("levels", [2, 3, 17, 256])
PROCESS = VariancePreserving()


def grid(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


def denoiser(process=PROCESS):
    """Return a denoiser with x0 = sin(3 z) + ..., unlike z / alpha."""
    return network(Wrong(), "x0", process)


def cdf(a):
    # torch's own ndtr is inaccurate below -10.
    return 0.5 * torch.special.erfc(-a * 0.5**0.5)


@every_k
def test_categorical_is_bayes_rule_under_a_flat_prior(levels):
    """p(k | z) ~ N(z; alpha c_k, sigma^2), the likelihood of z itself, for images with a gamma
    each."""
    k = torch.randint(levels, (6, 2, 3), generator=generator(levels))
    x, eps = grid(levels)[k], normal(6, 2, 3, seed=levels)
    gamma = torch.tensor([-13.3, -8.0, -4.0, -1.0, 0.0, 2.0]).double()
    for process in (PROCESS, VarianceExploding()):
        alpha, sigma = (a.view(-1, 1, 1, 1) for a in process.alpha_sigma(gamma))
        z = process.diffuse(x, gamma, eps)
        log_p = Normal(alpha * grid(levels), sigma).log_prob(z.unsqueeze(3)).log_softmax(3)
        exact = -log_p.gather(3, k.unsqueeze(3)).sum((1, 2, 3))
        ours = Categorical(levels).nats(denoiser(process), x, z, gamma)
        # The rounding of float32 centres is multiplied by e^13.3 here.
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-4)
        one = Categorical(levels).nats(denoiser(process), x[2:3], z[2:3], gamma[2])
        torch.testing.assert_close(one, ours[2:3])


@every_k
def test_discretised_gaussian_is_the_cdf_over_the_level_with_open_edges(levels):
    k = torch.cat([torch.arange(levels), torch.randint(levels, (64,), generator=generator(levels))])
    x, half = grid(levels)[k].unsqueeze(1), 1 / (levels - 1)
    z = normal(len(k), 1, seed=levels)
    for process, gamma in ((PROCESS, -3.0), (PROCESS, 0.5), (VarianceExploding(), -1.0)):
        gamma = torch.tensor(gamma).double()
        mean, std = denoiser(process)(z, gamma).x0, torch.exp(gamma / 2)  # sigma / alpha
        upper = torch.where(k.unsqueeze(1) == levels - 1, torch.inf, (x + half - mean) / std)
        lower = torch.where(k.unsqueeze(1) == 0, -torch.inf, (x - half - mean) / std)
        left = lower + upper < 0  # the tail in which the difference is accurate
        mass = torch.where(left, cdf(upper) - cdf(lower), cdf(-lower) - cdf(-upper))
        nats = DiscretisedGaussian(levels).nats(denoiser(process), x, z, gamma)
        torch.testing.assert_close(nats, -mass.log().squeeze(1), rtol=1e-8, atol=1e-8)
        each = DiscretisedGaussian(levels).nats(denoiser(process), x, z, gamma.expand(len(k)))
        torch.testing.assert_close(each, nats)


def test_discretised_gaussian_survives_far_tails_in_float32():
    decoder, gamma = DiscretisedGaussian(256), torch.tensor(-13.3)
    z = torch.linspace(-1.2, 1.2, 24).view(4, 2, 3)
    x = (torch.arange(24) % 7 / 127.5 - 1).view(4, 2, 3)
    whole = decoder.nats(denoiser(), x, z, gamma)
    assert whole.dtype == torch.float32 and whole.isfinite().all() and (whole > 0).all()
    # The tail at 200 standard deviations: -log Phi(-a) = a^2 / 2 + log(a sqrt(2 pi)) + O(a^-2).
    seen, x = [], torch.tensor([[0.6 - 200 * torch.exp(gamma / 2) - 1 / 255]])

    def fixed(z, gamma, condition):
        seen.append(condition)
        return SimpleNamespace(x0=torch.tensor([[0.6]]))

    fixed.process = PROCESS
    far = decoder.nats(fixed, x, x, gamma, "condition")
    expected = 200.0**2 / 2 + torch.log(200 * torch.tensor(2 * torch.pi).sqrt())
    torch.testing.assert_close(far, expected[None], rtol=2e-4, atol=0)
    assert seen == ["condition"], "is handed on"


def test_gaussian_density_is_the_likelihood_of_x_given_z():
    x, z = normal(2, 3, 2, 2)
    gamma = torch.tensor([-5.0, 0.0, 2.0]).double()
    for process in (PROCESS, VarianceExploding()):
        alpha, sigma = (a.view(-1, 1, 1) for a in process.alpha_sigma(gamma))
        exact = -Independent(Normal(z / alpha, sigma / alpha), 2).log_prob(x)
        torch.testing.assert_close(GaussianDensity().nats(denoiser(process), x, z, gamma), exact)
        one = GaussianDensity().nats(denoiser(process), x[1:2], z[1:2], gamma[1])
        torch.testing.assert_close(one, exact[1:2])


@pytest.mark.parametrize("gamma", [6.0, 12.0, 30.0, 50.0])
def test_discretised_gaussian_is_accurate_for_cells_narrower_than_noise(gamma):
    """log [Phi(b) - Phi(a)] in double; float32 rounds this difference to 0 from gamma = 30 on."""
    x = grid(17).view(1, 17)
    wrong, level = denoiser(), torch.tensor(gamma, dtype=torch.float64)
    z = PROCESS.diffuse(x, level, normal(1, 17))
    offset = (x - wrong(z, level).x0) * torch.exp(-level / 2)
    half = torch.exp(-level / 2) / 16
    upper, lower = cdf(offset + half), cdf(offset - half)
    upper[:, -1], lower[:, 0] = 1, 0
    exact = -torch.log(upper - lower).sum(1)
    nats = DiscretisedGaussian(17).nats(wrong, x.float(), z.float(), level.float()).double()
    torch.testing.assert_close(nats, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma_min", [-50.0, -40.0, -30.0, -25.0, -20.0, -10.0])
def test_gaussian_density_is_accurate_at_very_low_gamma_min(gamma_min):
    """x - z_0 / alpha_0 = -e^{gamma_0 / 2} eps, so -log p = 1/2 sum (eps^2 + log 2 pi +
    gamma_0)."""
    x, eps = normal(2, 64, 12).float()
    bound = Bound(Linear(gamma_min, 5.0), GaussianDensity())
    nats = bound.ends(SimpleNamespace(process=PROCESS), x, eps)[1]
    exact = 0.5 * (eps.double().square() + math.log(2 * math.pi) + gamma_min).sum(1)
    assert (nats - exact).abs().max() < 0.03
