"""Processes beside each other: what defines each, and one denoiser under all of them."""

import itertools

import pytest
import torch

from tests.diffusion.reprocess import Reprocessed
from triptych.diffusion.denoiser import EDMOutput
from triptych.diffusion.process import (
    Preconditioned,
    Rectified,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from triptych.diffusion.sampler import DPMSolver
from triptych.diffusion.schedule import Cosine, Linear

from .oracles import U, Wrong, lopsided, network, oracle, refused

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
pairs = pytest.mark.parametrize("before, after", list(itertools.permutations(PROCESSES, 2)))


@every
def test_each_is_what_defines_it_and_gamma_is_minus_log_snr(name):
    gamma = torch.linspace(-30, 30, 301, dtype=torch.float64)
    alpha, sigma = PROCESSES[name].alpha_sigma(gamma)
    assert DEFINITIONS[name](alpha, sigma).abs().max() < 1e-14
    torch.testing.assert_close(2 * torch.log(sigma / alpha), gamma)


@every
def test_float32_keeps_its_digits_at_both_ends(name):
    gamma = torch.linspace(-20, 20, 801)
    for ours, exact in zip(
        PROCESSES[name].alpha_sigma(gamma), PROCESSES[name].alpha_sigma(gamma.double()), strict=True
    ):
        assert ((ours.double() / exact - 1).abs() < U * (6 + gamma.abs())).all()


@every
def test_dlog_alpha_is_the_derivative(name):
    gamma = torch.linspace(-12, 12, 97, dtype=torch.float64, requires_grad=True)
    alpha, _ = PROCESSES[name].alpha_sigma(gamma)
    # VE's alpha hangs on nothing
    slope = (
        torch.autograd.grad(alpha.log().sum(), gamma)[0] if alpha.requires_grad else torch.zeros_like(gamma)
    )
    torch.testing.assert_close(PROCESSES[name].dlog_alpha(gamma.detach()), slope)


@every
def test_the_prior_is_where_the_process_ends(name):
    gamma = torch.tensor(25.0, dtype=torch.float64)
    _, sigma = PROCESSES[name].alpha_sigma(gamma)
    torch.testing.assert_close(PROCESSES[name].prior_std(gamma), sigma, rtol=1e-5, atol=0)


@pairs
def test_the_oracle_of_one_process_reprocessed_is_the_oracle_of_another(before, after):
    gamma = torch.linspace(-9, 8, 40, dtype=torch.float64)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = PROCESSES[after].diffuse(x, gamma, x.flip(0))
    truth = oracle(lopsided(), PROCESSES[after])
    moved = Reprocessed(oracle(lopsided(), PROCESSES[before]), PROCESSES[after])
    for view in ("x0", "epsilon", "score", "v"):
        torch.testing.assert_close(getattr(moved(z, gamma), view), getattr(truth(z, gamma), view))


@pytest.mark.parametrize("space", ["x0", "epsilon", "score", "v"])
def test_a_network_of_any_space_says_the_same_under_another_process(space):
    vp, rectified = PROCESSES["vp"], PROCESSES["rectified"]
    denoiser = network(Wrong(), space, vp)
    gamma = torch.tensor([-4.0, 0.5, 6.0], dtype=torch.float64)
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = z * (rectified.alpha_sigma(gamma)[0] / vp.alpha_sigma(gamma)[0])[:, None]
    own, moved = denoiser(z, gamma), Reprocessed(denoiser, rectified)(there, gamma)
    assert moved.space == space
    torch.testing.assert_close(moved.x0, own.x0)
    torch.testing.assert_close(moved.epsilon, own.epsilon)


@pytest.mark.parametrize("after", ["ve", "sub_vp", "rectified"])
def test_a_denoiser_samples_the_same_points_under_another_process_and_schedule(after):
    """The probability flow in data units, z / alpha, is the same curve: only the grid's gammas matter."""
    vp, other = PROCESSES["vp"], PROCESSES[after]
    denoiser = network(Wrong(), "v", vp)
    sampler = DPMSolver(12, grid="time")
    gammas = sampler.gammas(Cosine(-6.0, 4.0), dtype=torch.float64)
    assert (gammas - sampler.gammas(Linear(-6.0, 4.0), dtype=torch.float64)).abs().max() > 1
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = z * other.alpha_sigma(gammas[0])[0] / vp.alpha_sigma(gammas[0])[0]
    *_, own = sampler.path(denoiser, gammas, z)
    *_, moved = sampler.path(Reprocessed(denoiser, other), gammas, there)
    scale = [p.alpha_sigma(gammas[-1])[0] for p in (vp, other)]
    torch.testing.assert_close(moved / scale[1], own / scale[0])


def test_edm_s_input_is_theirs_and_has_unit_variance():
    """Karras et al. 2022, table 1: c_in (x + s eps); F, read of it, is their D by c_skip and c_out."""
    data, s = 0.5, torch.logspace(-3, 2, 30, dtype=torch.float64)[:, None]
    process, gamma = Preconditioned(data), 2 * s.log()
    generator = torch.Generator().manual_seed(0)
    x, eps, f = torch.randn(3, 30, 4, generator=generator, dtype=torch.float64)
    z = process.diffuse(x, gamma, eps)
    torch.testing.assert_close(z, (x + s * eps) / (s**2 + data**2).sqrt())
    alpha, sigma = process.alpha_sigma(gamma)
    torch.testing.assert_close((data * alpha) ** 2 + sigma**2, torch.ones_like(s))
    skip, out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    guess = EDMOutput(data)(f, z, alpha, sigma)
    torch.testing.assert_close(guess.x0, skip * (x + s * eps) + out * f)


def test_with_unit_data_edm_s_scales_are_those_that_preserve_the_variance():
    gamma = torch.linspace(-12, 12, 97, dtype=torch.float64)
    pairs = zip(Preconditioned(1.0).alpha_sigma(gamma), VariancePreserving().alpha_sigma(gamma), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_processes_of_other_numbers_are_others():
    assert str(Preconditioned(0.5)) == str(Preconditioned(0.5)) != str(Preconditioned(0.6))
    assert str(VariancePreserving()) == "VariancePreserving"
    refused(lambda: Preconditioned(0.0), "process.sigma_data=0.0")
