"""The process: Gaussian facts, each against the rule it comes from."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from triptych.diffusion.process import Process, VariancePreserving, expand

from .oracles import U, VarianceExploding

PROCESSES = [VariancePreserving(), VarianceExploding()]
every = pytest.mark.parametrize("process", PROCESSES, ids=["vp", "ve"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_expand_keeps_scalars_and_lines_up_batches():
    z = torch.zeros(3, 2, 4)
    assert expand(torch.tensor(1.0), z).shape == ()
    assert expand(torch.arange(3), z).shape == (3, 1, 1)


@every
def test_gamma_is_minus_log_snr(process):
    gamma = torch.linspace(-13.3, 10, 200, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(gamma)
    torch.testing.assert_close(2 * torch.log(sigma / alpha), gamma)


def test_variance_is_preserved_and_exact_at_both_ends_in_float32():
    process = VariancePreserving()
    gamma = torch.linspace(-13.3, 10, 500)
    alpha, sigma = process.alpha_sigma(gamma)
    exact_alpha, exact_sigma = process.alpha_sigma(gamma.double())
    torch.testing.assert_close(exact_alpha.square() + exact_sigma.square(), torch.ones(500).double())
    torch.testing.assert_close(exact_sigma.square(), torch.sigmoid(gamma.double()))
    # exp turns an error of U |a| in its argument a, at most |gamma| / 2, into a relative one
    for ours, exact in ((alpha, exact_alpha), (sigma, exact_sigma)):
        assert ((ours.double() / exact - 1).abs() < U * (4 + gamma.abs())).all()


@every
def test_diffuse_mixes_signal_and_noise_with_a_gamma_per_item(process):
    x, eps, gamma = normal(3, 2, 4), normal(3, 2, 4, seed=1), torch.tensor([-5.0, 0.3, 4.0]).double()
    z = process.diffuse(x, gamma, eps)
    for i in range(3):
        alpha, sigma = process.alpha_sigma(gamma[i])
        torch.testing.assert_close(z[i], alpha * x[i] + sigma * eps[i])
    torch.testing.assert_close(process.diffuse(x, gamma[1], eps)[1], z[1])


@every
def test_posterior_is_bayes_rule(process):
    """q(z_s | z_t, x) by conditioning the joint Gaussian of (z_s, z_t) given x on its second half."""
    gamma_s, gamma_t = (
        torch.tensor([-9.0, -2.0, 1.0, 3.0]).double(),
        torch.tensor([-4.0, -1.5, 6.0, 3.001]).double(),
    )
    x, z = normal(4, 3), normal(4, 3, seed=1)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.alpha_sigma(gamma_s), process.alpha_sigma(gamma_t)
    mean, std = process.posterior(z, x, gamma_t, gamma_s)
    for i in range(4):
        step = alpha_t[i] / alpha_s[i]  # z_t = step z_s + fresh noise
        fresh = sigma_t[i] ** 2 - step**2 * sigma_s[i] ** 2
        cov = torch.stack(
            [sigma_s[i] ** 2, step * sigma_s[i] ** 2, step * sigma_s[i] ** 2, torch.zeros(()).double()]
        )
        cov = cov.view(2, 2)
        cov[1, 1] = step**2 * sigma_s[i] ** 2 + fresh
        gain = cov[0, 1] / cov[1, 1]
        torch.testing.assert_close(mean[i], alpha_s[i] * x[i] + gain * (z[i] - alpha_t[i] * x[i]))
        torch.testing.assert_close(
            std[i].square().item(), (cov[0, 0] - gain * cov[1, 0]).item(), rtol=1e-7, atol=0
        )
    # one pair of levels for all items is the same
    again = process.posterior(z, x, gamma_t[2], gamma_s[2])
    torch.testing.assert_close(again.mean[2], mean[2])
    torch.testing.assert_close(again.std.reshape(()), std[2].reshape(()))


@every
def test_posterior_composes_to_the_marginal(process):
    """If z_t ~ q(z_t | x) then z_s ~ q(z_s | x): the mean and the variance, by linearity."""
    gamma_s, gamma_t = torch.tensor(-3.0).double(), torch.tensor(1.0).double()
    x = normal(5, 2)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.alpha_sigma(gamma_s), process.alpha_sigma(gamma_t)
    mean, std = process.posterior(alpha_t * x, x, gamma_t, gamma_s)
    torch.testing.assert_close(mean, alpha_s * x)
    moved = process.posterior(alpha_t * x + sigma_t, x, gamma_t, gamma_s).mean - mean
    torch.testing.assert_close(moved.square() + std**2, torch.full_like(x, sigma_s**2))


def test_posterior_keeps_its_digits_between_close_levels():
    process = VariancePreserving()
    gamma_s = torch.linspace(-13.3, 9.9, 300)
    gamma_t = gamma_s + 2e-3
    zero = torch.zeros(300, 1)
    std = process.posterior(zero, zero, gamma_t, gamma_s).std.double().flatten()
    apart = gamma_t.double() - gamma_s.double()  # exact: what float32 was given
    exact = (torch.sigmoid(gamma_s.double()) * -torch.expm1(-apart)).sqrt()
    assert ((std / exact - 1).abs() < U * (6 + gamma_s.abs())).all()


@every
@pytest.mark.parametrize("gamma", [-2.0, 3.0, 8.0])
def test_prior_kl_is_the_divergence_to_the_prior(process, gamma):
    gamma = torch.tensor(gamma).double()
    x = normal(5, 2, 3)
    alpha, sigma = process.alpha_sigma(gamma)
    q = Independent(Normal(alpha * x, sigma.expand_as(x)), 2)
    p = Independent(Normal(torch.zeros_like(x), process.prior_std(gamma).expand_as(x)), 2)
    torch.testing.assert_close(process.prior_kl(x, gamma), kl_divergence(q, p))


def test_prior_kl_takes_a_gamma_per_item():
    process, x, gamma = VariancePreserving(), normal(3, 3), torch.tensor([1.0, 3.0, 8.0]).double()
    one_by_one = [process.prior_kl(x[i : i + 1], gamma[i]) for i in range(3)]
    torch.testing.assert_close(process.prior_kl(x, gamma), torch.cat(one_by_one))


def test_priors():
    gamma = torch.tensor([2.0, 5.0])
    assert (VariancePreserving().prior_std(gamma) == 1).all()
    with pytest.raises(NotImplementedError):
        Process().alpha_sigma(gamma)
