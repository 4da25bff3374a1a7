"""Ancestral and DDIM sampling of distributions whose exact noisy marginals and exact flow are known."""

import itertools
import math

import pytest
import torch

from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.sampler import DDIM, Ancestral, Step
from triptych.diffusion.schedule import Linear

from .oracles import SCHEDULES, Wrong, correlated, generator, network, oracle, ring

VP = VariancePreserving()
both = pytest.mark.parametrize("process", [VP, VarianceExploding()], ids=["vp", "ve"])
WIDE = Linear(-12.0, 10.0)


def root(matrix, power=0.5):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values**power).diag() @ vectors.T


def affine_map(sampler, schedule, parts, process):
    """(A, b) with sample = A w + b for the white noise w it starts from: exact, as the oracle is affine."""
    d = parts[1].shape[1]
    n = 8 * d
    sample = sampler(oracle(parts, process), schedule, (n, d), generator=generator())
    white = torch.randn(n, d, generator=generator()).double()
    solution = torch.linalg.lstsq(torch.cat([white, torch.ones(n, 1).double()], 1), sample.double()).solution
    return solution[:d].T, solution[d]


def exact_map(schedule, parts, process):
    """The probability flow of a Gaussian: (z_s - alpha_s m) = S_s^{1/2} S_t^{-1/2} (z_t - alpha_t m)."""
    ends = torch.tensor([schedule.gamma_min, schedule.gamma_max]).double()
    (alpha_0, alpha_1), (sigma_0, sigma_1) = process.alpha_sigma(ends)
    mean, cov = parts[1][0], parts[2][0]
    eye = torch.eye(len(mean)).double()
    flow = (
        root(alpha_0**2 * cov + sigma_0**2 * eye) @ root(alpha_1**2 * cov + sigma_1**2 * eye, -0.5) / alpha_0
    )
    return flow * process.prior_std(ends[1]), mean - alpha_1 * flow @ mean


@both
@pytest.mark.parametrize(("grid", "name"), [("gamma", "linear"), ("time", "cosine"), ("time", "sigmoid")])
def test_ddim_converges_to_the_exact_flow_at_first_order(process, grid, name):
    """Half the step, half the error (float32 puts the floor far below)."""
    parts, schedule = correlated(2), SCHEDULES[name](-4.0, 4.0)
    exact_A, exact_b = exact_map(schedule, parts, process)
    errors = []
    for steps in (100, 200, 400):
        A, b = affine_map(DDIM(steps, grid), schedule, parts, process)
        errors.append(math.hypot((A - exact_A).norm().item(), (b - exact_b).norm().item()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


@both
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_with_noise_keeps_the_marginal_whatever_eta(process, eta):
    """With the truth for a guess, z_s ~ N(alpha_s x, sigma_s^2): kept^2 + fresh^2 = sigma_s^2 (lemma 1)."""
    x, eps = torch.full((200_000, 1), 0.4).double(), torch.randn(200_000, 1, generator=generator()).double()
    gamma_t, gamma_s = torch.tensor(0.5).double(), torch.tensor(-1.0).double()

    class Truth(torch.nn.Module):
        def forward(self, z, gamma, condition):
            return x

    z = process.diffuse(x, gamma_t, eps)
    at = Step(network(Truth(), "x0", process), gamma_t, gamma_s, generator=generator(1))
    z_s = DDIM(1, eta=eta).step(z, at)
    alpha, sigma = process.alpha_sigma(gamma_s)
    white = (z_s - alpha * x) / sigma
    n = len(x)
    assert abs(white.mean().item()) < 5 / math.sqrt(n)
    assert abs(white.var().item() - 1) < 5 * math.sqrt(2 / n)
    # of which eps_hat carries sqrt(1 - eta^2 (1 - SNR_t / SNR_s))
    kept = math.sqrt(1 - eta**2 * (1 - math.exp(-1.5)))
    assert (white * eps).mean().item() == pytest.approx(kept, abs=5 / math.sqrt(n))


@both
def test_eta_one_is_ancestral_step_for_step(process):
    denoiser = network(Wrong(), "epsilon", process)
    z = torch.randn(64, 3, generator=generator()).double()
    for gamma_t, gamma_s in ((8.0, 7.0), (1.0, -3.0), (0.01, 0.0), (-9.9, -10.0)):
        levels = torch.tensor(gamma_t).double(), torch.tensor(gamma_s).double()
        one = DDIM(5, eta=1.0).step(z, Step(denoiser, *levels, generator=generator(1)))
        other = Ancestral(5).step(z, Step(denoiser, *levels, generator=generator(1)))
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_ancestral_converges_with_the_number_of_steps():
    """The variance of one Gaussian after T steps, by its exact recursion through the sampler's own steps."""
    parts = [torch.ones(1).double(), torch.zeros(1, 1).double(), torch.full((1, 1, 1), 0.09).double()]
    denoiser, short = oracle(parts), []
    for steps in (50, 100, 200, 400):
        gammas = Ancestral(steps).gammas(WIDE).double()
        variance = 1.0
        zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
        for gamma_t, gamma_s in itertools.pairwise(gammas):
            base = Ancestral(steps).step(zero, Step(denoiser, gamma_t, gamma_s, generator=generator()))
            gain = Ancestral(steps).step(one, Step(denoiser, gamma_t, gamma_s, generator=generator())) - base
            noise = base / torch.randn(1, 1, generator=generator(), dtype=torch.float64)
            variance = gain.item() ** 2 * variance + noise.item() ** 2
        alpha, sigma = (a.item() for a in VP.alpha_sigma(gammas[-1]))
        short.append(1 - variance / (alpha**2 * 0.09 + sigma**2))
    assert 0 < short[-1] < 0.03  # beta tilde is too small a variance
    for a, b in itertools.pairwise(short):
        assert a / b == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("sampler", [Ancestral(300), DDIM(300, eta=0.5)])
def test_samples_of_the_ring_are_the_ring(sampler):
    """Every mode equally often, and -log p of the samples averages to the entropy."""
    mixture, n = GaussianMixture(*ring()), 2000
    x = sampler(oracle(ring()), Linear(-10.0, 8.0), (n, 2), generator=generator(5)).double()
    entropy = mixture.entropy()
    nats = -mixture.log_prob(x)
    assert abs(nats.mean().item() - entropy.mean) < 5 * nats.std().item() / math.sqrt(n) + 0.05
    counts = torch.cdist(x, mixture.means).argmin(1).bincount(minlength=8)
    assert (counts - n / 8).abs().max() < 5 * math.sqrt(n / 8 * 7 / 8)


@pytest.mark.parametrize("grid", ["gamma", "time", "karras"])
@pytest.mark.parametrize("kind", SCHEDULES.values())
def test_a_grid_of_the_most_steps_falls_at_each(kind, grid):
    """Two equal levels would be a step of no length, of which a second-order sampler makes 0 / 0."""
    assert (DDIM(100_000, grid).gammas(kind(-13.0, 10.0)).diff() < 0).all()
