"""The oracle: density, score, posterior mean and entropy of a mixture, against torch and
quadrature."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from triptych.diffusion.condition import Condition
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.prediction import SPACES
from triptych.diffusion.process import VarianceExploding, VariancePreserving

from .oracles import (
    correlated,
    distribution,
    entropy_by_quadrature,
    generator,
    lopsided,
    normal,
    oracle,
    refused,
    ring,
    ring_mixture,
)

LEVELS = [(1.0, 0.0), (0.999, 0.05), (0.6, 0.8), (0.02, 0.9998), (1.0, 3.0)]
LINE = [
    torch.tensor(a, dtype=torch.float64)
    for a in ([0.2, 0.3, 0.5], [[-1.2], [0.1], [0.8]], [[[0.02]], [[0.1]], [[0.005]]])
]
mixtures = pytest.mark.parametrize(
    "parts", [ring(), lopsided(), correlated(16), LINE], ids=["ring", "lopsided", "16-d", "1-d"]
)


def points(parts, n=50):
    return 1.5 * normal(n, parts[1].shape[1])


@mixtures
@pytest.mark.parametrize("alpha, sigma", LEVELS)
def test_log_prob_and_score_match_torch_mixture(parts, alpha, sigma):
    mixture, z = GaussianMixture(*parts), points(parts).requires_grad_()
    exact = distribution(parts, alpha, sigma).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z, alpha, sigma), exact, rtol=1e-8, atol=1e-8)
    if sigma == 0:
        torch.testing.assert_close(mixture.log_prob(z), exact, rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(exact.sum(), z)
    torch.testing.assert_close(
        mixture.score(z.detach(), alpha, sigma), gradient, rtol=1e-7, atol=1e-7
    )


def test_mixture_accepts_alpha_and_sigma_per_item():
    mixture, z = GaussianMixture(*lopsided()), points(lopsided(), 5)
    alpha, sigma = (torch.tensor(a).double().view(5, 1) for a in zip(*LEVELS, strict=True))
    for i, (a, s) in enumerate(LEVELS):
        torch.testing.assert_close(
            mixture.log_prob(z, alpha, sigma)[i], mixture.log_prob(z, a, s)[i]
        )
        torch.testing.assert_close(mixture.score(z, alpha, sigma)[i], mixture.score(z, a, s)[i])


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()], ids=["vp", "ve"])
@pytest.mark.parametrize("gamma", [-6.0, -2.0, 0.0, 3.0, 8.0])
def test_posterior_mean_is_bayes_rule_by_quadrature(process, gamma):
    """E[x | z] = int x p(x) q(z | x) dx / int p(x) q(z | x) dx, on a line and in the plane."""
    gamma = torch.tensor(gamma).double()
    alpha, sigma = process.alpha_sigma(gamma)
    for parts, n in ((LINE, 20_001), (lopsided(), 401)):
        d = parts[1].shape[1]
        axis = torch.linspace(-4, 4, n, dtype=torch.float64)
        x = torch.cartesian_prod(*[axis] * d).view(-1, d)
        log_p = distribution(parts).log_prob(x)
        z = alpha * points(parts, 12) * 0.6 + sigma * points(parts, 24)[12:] * 0.5
        log_q = Normal(alpha * x, sigma).log_prob(z[:, None]).sum(2)
        exact = (log_p + log_q).softmax(1) @ x
        guess = oracle(parts, process)(z, gamma)
        torch.testing.assert_close(guess.x0, exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(guess.epsilon, (z - alpha * exact) / sigma, rtol=1e-4, atol=1e-4)


@mixtures
def test_conditional_oracle_is_oracle_of_component(parts):
    z = points(parts, 40)
    label = torch.arange(40) % len(parts[0])
    gamma = torch.linspace(-6, 6, 40, dtype=torch.float64)
    guess = oracle(parts)(z, gamma, Condition(label=label))
    for k in range(len(parts[0])):
        own = oracle([torch.ones(1).double(), parts[1][k : k + 1], parts[2][k : k + 1]])
        rows = label == k
        for space in SPACES:
            theirs = own(z[rows], gamma[rows]).view(space)
            torch.testing.assert_close(guess.view(space)[rows], theirs, rtol=1e-8, atol=1e-8)


def test_float32_agrees_with_float64():
    z, gamma = points(ring()), torch.linspace(-10, 8, 50).double()
    single, double = oracle(ring())(z.float(), gamma.float()), oracle(ring())(z, gamma)
    assert single.score.dtype == torch.float32
    torch.testing.assert_close(single.score.double(), double.score, rtol=1e-3, atol=1e-3)


def test_entropy_of_one_gaussian_is_exact():
    weights, means, covariances = correlated(16)
    estimate = GaussianMixture(weights, means, covariances).entropy()
    exact = MultivariateNormal(means[0], covariances[0]).entropy().item()
    assert estimate.stderr == 0 and estimate.mean == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("parts", [ring(), lopsided()], ids=["ring", "lopsided"])
def test_entropy_of_a_mixture_is_within_its_standard_error(parts):
    exact = entropy_by_quadrature(parts, 1.0, 0.0, reach=4.0, points=600)
    for seed in range(4):
        estimate = GaussianMixture(*parts).entropy(n=50_000, seed=seed)
        assert abs(estimate.mean - exact) < 3 * estimate.stderr
        assert 0.5 < estimate.stderr * math.sqrt(50_000) < 2  # std of log p: near sqrt(d / 2) = 1


@mixtures
def test_samples_have_the_components_moments(parts):
    weights, means, covariances = parts
    n = 40_000
    x, label = GaussianMixture(*parts).sample(n, generator())
    assert x.dtype == torch.float32 and x.shape == (n, means.shape[1])
    for k, weight in enumerate(weights.tolist()):
        own = x[label == k].double()
        assert abs(len(own) / n - weight) <= 5 * math.sqrt(weight * (1 - weight) / n)
        # Whitened by the true covariance: mean 0 and covariance I, each entry within 5 standard
        # errors.
        root = torch.linalg.cholesky(covariances[k])
        white = torch.linalg.solve_triangular(root, (own - means[k]).T, upper=False)
        assert white.mean(1).abs().max() < 5 / math.sqrt(len(own))
        assert (white.cov(correction=0) - torch.eye(len(white))).abs().max() < 5 * math.sqrt(
            2 / len(own)
        )


def test_samples_follow_from_the_generator():
    before = torch.random.get_rng_state()
    one, other = (ring_mixture().sample(100, generator(7))[0] for _ in range(2))
    assert torch.equal(one, other) and torch.equal(torch.random.get_rng_state(), before)


def test_mixture_accepts_covariances_with_float32_asymmetry():
    for seed in range(40):
        basis = torch.linalg.qr(normal(4, 4, seed=seed).float()).Q
        GaussianMixture([1.0], [[0.0] * 4], (basis @ torch.arange(1.0, 5.0).diag() @ basis.T)[None])


def test_mixture_refuses_invalid_weights_means_and_covariances():
    means, eye = [[0.0, 0.0], [1.0, 1.0]], [[[1.0, 0.0], [0.0, 1.0]]] * 2
    for weights in ([0.5, 0.4], [1.5, -0.5], [1.0, 0.0], [math.nan, 1.0]):
        refused(lambda w=weights: GaussianMixture(w, means, eye), "weights", "sum to one")
    words = "means, covariances: must have one entry per weight"
    refused(lambda: GaussianMixture([1.0], means, eye), words)
    refused(lambda: GaussianMixture([0.5, 0.5], means, eye[:1]), words)
    refused(lambda: GaussianMixture([0.5, 0.5], [0.0, 1.0], eye), words)
    refused(lambda: GaussianMixture([0.5, 0.5], [[0.0, math.nan], [1.0, 1.0]], eye), "means")
    for size in (1, 3):  # 1 x 1 would broadcast, and count its variance in one dimension alone
        refused(
            lambda n=size: GaussianMixture([0.5, 0.5], means, torch.eye(n).repeat(2, 1, 1)), "2 x 2"
        )
    for a, b, c in ((1.0, 0.5, 0.0), (1.0, 2.0, 2.0), (0.0, 0.0, 0.0), (math.nan, 0.0, 0.0)):
        bad = [eye[0], [[a, b], [c, 1.0]]]
        refused(
            lambda c=bad: GaussianMixture([0.5, 0.5], means, c), "covariances", "positive definite"
        )
