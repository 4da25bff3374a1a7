"""Processes: their definitions and the Gaussians that follow, each against the rule behind it."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import EDMOutput
from triptych.diffusion.draws import Draw
from triptych.diffusion.process import (
    Preconditioned,
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    expand_like,
)
from triptych.diffusion.sampler import DPMSolver
from triptych.diffusion.schedule import Linear

from .oracles import U, lopsided, normal, oracle

PROCESSES = {
    "vp": VariancePreserving(),
    "ve": VarianceExploding(),
    "sub_vp": SubVariancePreserving(),
    "rectified": Rectified(),
    "edm": Preconditioned(0.6),
}
DEFINITIONS = {
    "vp": lambda alpha, sigma: alpha.square() + sigma.square() - 1,
    "ve": lambda alpha, sigma: alpha - 1,
    "sub_vp": lambda alpha, sigma: alpha.square() + sigma - 1,
    "rectified": lambda alpha, sigma: alpha + sigma - 1,
    "edm": lambda alpha, sigma: 0.36 * alpha.square() + sigma.square() - 1,
}
every = pytest.mark.parametrize("name", PROCESSES)
both = pytest.mark.parametrize(
    "process", [VariancePreserving(), VarianceExploding()], ids=["vp", "ve"]
)


@every
def test_process_definition_holds_and_gamma_is_minus_log_snr(name):
    gamma = torch.linspace(-30, 30, 301, dtype=torch.float64)
    alpha, sigma = PROCESSES[name].alpha_sigma(gamma)
    assert DEFINITIONS[name](alpha, sigma).abs().max() < 1e-14
    torch.testing.assert_close(2 * torch.log(sigma / alpha), gamma)
    prior = PROCESSES[name].prior_std(gamma[-1])  # at the end of the process
    torch.testing.assert_close(prior, sigma[-1], rtol=1e-5, atol=0)


@every
def test_alpha_sigma_is_accurate_in_float32(name):
    gamma = torch.linspace(-20, 20, 801)
    found = [PROCESSES[name].alpha_sigma(g) for g in (gamma, gamma.double())]
    for ours, exact in zip(*found, strict=True):
        assert ((ours.double() / exact - 1).abs() < U * (6 + gamma.abs())).all()


@every
def test_gammas_of_a_grid_carry_the_scales_of_a_single_gamma(name):
    process, gammas = PROCESSES[name], torch.linspace(-15, 10, 40)
    for gamma, level in zip(gammas, process.grid(gammas), strict=True):
        assert process.scales(level) == process.alpha_sigma(gamma)
        assert process.scales(level) is process.scales(level)


def test_gamma_of_another_process_has_own_scales():
    (level,) = VariancePreserving().grid(torch.tensor([0.5]))
    assert Rectified().scales(level) == Rectified().alpha_sigma(torch.tensor(0.5))


def test_probability_flow_and_diffusion_loss_agree_between_processes():
    """The probability flow in data units, z / alpha, is one curve, and the loss depends on gamma
    alone."""
    schedule, sampler, z = Linear(-6.0, 4.0), DPMSolver(12), normal(5, 2)
    gammas, draw = (
        sampler.gammas(schedule, dtype=z.dtype),
        Draw(z[:, 0].sigmoid(), normal(5, 2, seed=1), z),
    )
    ends, losses = [], []
    for process in PROCESSES.values():
        alpha, _ = process.alpha_sigma(gammas)
        denoiser = oracle(lopsided(), process)
        *_, end = sampler.path(denoiser, gammas, alpha[0] * z)
        ends.append(end / alpha[-1])
        losses.append(Bound(schedule, GaussianDensity())(denoiser, z.flip(0), draw).diffusion)
    for one, first in [*((e, ends[0]) for e in ends), *((a, losses[0]) for a in losses)]:
        torch.testing.assert_close(one, first)


def test_preconditioned_process_matches_edm_c_in_and_unit_variance():
    """Karras et al. 2022, table 1: c_in (x + s eps). F, read from it, gives the paper's D by c_skip
    and c_out."""
    data, s = 0.5, torch.logspace(-3, 2, 30, dtype=torch.float64)[:, None]
    process, gamma = Preconditioned(data), 2 * s.log()
    x, eps, f = normal(3, 30, 4)
    z = process.diffuse(x, gamma, eps)
    torch.testing.assert_close(z, (x + s * eps) / (s**2 + data**2).sqrt())
    alpha, sigma = process.alpha_sigma(gamma)
    torch.testing.assert_close((data * alpha) ** 2 + sigma**2, torch.ones_like(s))
    skip, out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    guess = EDMOutput(data)(f, z, alpha, sigma)
    torch.testing.assert_close(guess.x0, skip * (x + s * eps) + out * f)


def test_preconditioned_with_unit_sigma_data_is_variance_preserving():
    gamma = torch.linspace(-12, 12, 97, dtype=torch.float64)
    pairs = zip(
        Preconditioned(1.0).alpha_sigma(gamma), VariancePreserving().alpha_sigma(gamma), strict=True
    )
    assert all(torch.equal(*pair) for pair in pairs)


def test_process_str_includes_its_parameters():
    assert str(Preconditioned(0.5)) == str(Preconditioned(0.5)) != str(Preconditioned(0.6))
    assert str(VariancePreserving()) == "VariancePreserving"


def test_expand_reshapes_per_item_values_for_broadcasting():
    z = torch.zeros(3, 2, 4)
    assert expand_like(torch.tensor(1.0), z).shape == ()
    assert expand_like(torch.arange(3), z).shape == (3, 1, 1)


@both
def test_diffuse_mixes_signal_and_noise_with_a_gamma_per_item(process):
    x, eps, gamma = (
        normal(3, 2, 4),
        normal(3, 2, 4, seed=1),
        torch.tensor([-5.0, 0.3, 4.0]).double(),
    )
    z = process.diffuse(x, gamma, eps)
    for i in range(3):
        alpha, sigma = process.alpha_sigma(gamma[i])
        torch.testing.assert_close(z[i], alpha * x[i] + sigma * eps[i])
    torch.testing.assert_close(process.diffuse(x, gamma[1], eps)[1], z[1])


@both
def test_posterior_is_bayes_rule(process):
    """q(z_s | z_t, x) results from the joint Gaussian of (z_s, z_t) given x, conditioned on z_t."""
    gamma_s, gamma_t = torch.tensor([[-9.0, -2.0, 1.0, 3.0], [-4.0, -1.5, 6.0, 3.001]]).double()
    x, z = normal(4, 3), normal(4, 3, seed=1)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        process.alpha_sigma(gamma_s),
        process.alpha_sigma(gamma_t),
    )
    mean, std = process.posterior(z, x, gamma_t, gamma_s)
    for i in range(4):
        of_s, step = sigma_s[i] ** 2, alpha_t[i] / alpha_s[i]  # z_t = step z_s + fresh noise
        fresh = sigma_t[i] ** 2 - step**2 * of_s
        across, of_t = step * of_s, step**2 * of_s + fresh  # covariances
        gain = across / of_t
        torch.testing.assert_close(mean[i], alpha_s[i] * x[i] + gain * (z[i] - alpha_t[i] * x[i]))
        torch.testing.assert_close(
            std[i].square().item(), (of_s - gain * across).item(), rtol=1e-7, atol=0
        )
    # One pair of levels for all items gives the same.
    again = process.posterior(z, x, gamma_t[2], gamma_s[2])
    torch.testing.assert_close(again.mean[2], mean[2])
    torch.testing.assert_close(again.std.reshape(()), std[2].reshape(()))


@both
def test_posterior_composes_to_the_marginal(process):
    """If z_t ~ q(z_t | x) then z_s ~ q(z_s | x): mean and variance follow by linearity."""
    gamma_s, gamma_t = torch.tensor(-3.0).double(), torch.tensor(1.0).double()
    x = normal(5, 2)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        process.alpha_sigma(gamma_s),
        process.alpha_sigma(gamma_t),
    )
    mean, std = process.posterior(alpha_t * x, x, gamma_t, gamma_s)
    torch.testing.assert_close(mean, alpha_s * x)
    moved = process.posterior(alpha_t * x + sigma_t, x, gamma_t, gamma_s).mean - mean
    torch.testing.assert_close(moved.square() + std**2, torch.full_like(x, sigma_s**2))


def test_posterior_std_is_accurate_between_close_levels():
    process = VariancePreserving()
    gamma_s = torch.linspace(-13.3, 9.9, 300)
    gamma_t = gamma_s + 2e-3
    zero = torch.zeros(300, 1)
    std = process.posterior(zero, zero, gamma_t, gamma_s).std.double().flatten()
    apart = gamma_t.double() - gamma_s.double()  # the exact difference of the float32 numbers
    exact = (torch.sigmoid(gamma_s.double()) * -torch.expm1(-apart)).sqrt()
    assert ((std / exact - 1).abs() < U * (6 + gamma_s.abs())).all()


@both
@pytest.mark.parametrize("gamma", [-2.0, 3.0, 8.0])
def test_prior_kl_is_the_divergence_to_the_prior(process, gamma):
    gamma = torch.tensor(gamma).double()
    x = normal(5, 2, 3)
    alpha, sigma = process.alpha_sigma(gamma)
    q = Independent(Normal(alpha * x, sigma.expand_as(x)), 2)
    p = Independent(Normal(torch.zeros_like(x), process.prior_std(gamma).expand_as(x)), 2)
    torch.testing.assert_close(process.prior_kl(x, gamma), kl_divergence(q, p))
