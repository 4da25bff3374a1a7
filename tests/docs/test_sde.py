"""The SDE view: coefficients that keep the marginals, and both reversals against the truth."""

import itertools
from runpy import run_path

import pytest
import torch

from tests.diffusion.oracles import SCHEDULES, correlated, oracle
from tests.diffusion.test_processes import PROCESSES
from triptych.config.check import CONFIGS
from triptych.diffusion.schedule import BetaLinear, Cosine, Linear

SDE = run_path(str(CONFIGS.parent / "docs" / "sde.py"))["SDE"]
DLOG_ALPHA = {  # by sigma and gamma, d log alpha / d gamma worked out by hand
    "vp": lambda sigma, gamma: -sigma.square() / 2,
    "ve": lambda sigma, gamma: 0 * gamma,
    "sub_vp": lambda sigma, gamma: -sigma / (2 * (2 - sigma)),
    "rectified": lambda sigma, gamma: -sigma / 2,
    "edm": lambda sigma, gamma: -gamma.exp() / (2 * (gamma.exp() + 0.36)),
}
every = pytest.mark.parametrize("name", PROCESSES)


@every
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sde_drift_and_diffusion_keep_marginals(name, schedule):
    """d sigma^2 / dt = 2 f sigma^2 + g^2 by autograd, and f = d log alpha / dt by hand."""
    sde = SDE(PROCESSES[name], SCHEDULES[schedule](-6.0, 5.0))
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64, requires_grad=True)
    _, sigma = sde.process.alpha_sigma(sde.schedule.gamma(t))
    f, g2 = sde.drift(t).detach(), sde.diffusion(t).detach()
    growth = torch.autograd.grad(sigma.square().sum(), t)[0]
    sigma = sigma.detach()
    torch.testing.assert_close(growth, 2 * f * sigma.square() + g2)
    by_hand = DLOG_ALPHA[name](sigma, sde.schedule.gamma(t)) * sde.schedule.dgamma(t)
    torch.testing.assert_close(f, by_hand.detach())


def test_sde_of_beta_linear_schedule_has_its_beta():
    """On the part of the beta-linear curve that is used, g^2 = beta(u) and f = -beta / 2."""
    schedule = BetaLinear(-6.0, 5.0, beta_min=0.1, beta_max=20.0)
    sde = SDE(PROCESSES["vp"], schedule)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    u = schedule._start + schedule._length * t
    beta = (0.1 + 19.9 * u) * schedule._length
    torch.testing.assert_close(sde.diffusion(t), beta)
    torch.testing.assert_close(sde.drift(t), -beta / 2)


def euler_maruyama(drift, g2, z, times, generator):
    """Integrate z along ``times`` with noise of variance g2 |dt| a step."""
    for t, s in itertools.pairwise(times):
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        z = z + drift(z, t) * (s - t) + (g2(t) * (s - t).abs()).sqrt() * noise
    return z


@every
def test_forward_sde_simulation_matches_marginals(name):
    sde = SDE(PROCESSES[name], Cosine(-4.0, 3.0))
    n, x = 20_000, 1.7
    generator = torch.Generator().manual_seed(0)
    start, times = (
        torch.zeros((), dtype=torch.float64),
        torch.linspace(0, 0.8, 201, dtype=torch.float64),
    )
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    z = sde.process.diffuse(torch.full_like(eps, x), sde.schedule.gamma(start), eps)
    z = euler_maruyama(sde.forward, sde.diffusion, z, times, generator)
    alpha, sigma = sde.process.alpha_sigma(sde.schedule.gamma(times[-1]))
    assert z.mean().item() == pytest.approx(x * alpha.item(), abs=4 * sigma.item() / n**0.5 + 0.01)
    assert (z.std() / sigma).item() == pytest.approx(1, abs=4 / (2 * n) ** 0.5 + 0.01)


@every
def test_reverse_sde_and_probability_flow_recover_data_moments(name):
    """For a correlated Gaussian, mean and covariance are right after either way back."""
    truth = oracle(correlated(2), PROCESSES[name])
    sde = SDE(truth.process, Linear(-5.0, 4.0))
    generator = torch.Generator().manual_seed(1)
    x, _ = truth.mixture.sample(10_000, generator)
    ends = sde.schedule.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z = sde.process.diffuse(x.double(), ends[1], eps)
    steps = 300 if name == "ve" else 150  # whose sigma falls the fastest
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = sde.process.alpha_sigma(ends[0])
    mean = alpha * truth.mixture.means[0]
    cov = alpha**2 * correlated(2)[2][0] + sigma**2 * torch.eye(2)
    for back in (
        euler_maruyama(lambda z, t: sde.reverse(truth, z, t), sde.diffusion, z, times, generator),
        euler_maruyama(lambda z, t: sde.flow(truth, z, t), torch.zeros_like, z, times, generator),
    ):
        scale = cov.diagonal().sqrt()
        assert ((back.mean(0) - mean).abs() < 0.05 * scale).all()
        assert ((torch.cov(back.T) - cov).abs() < 0.06 * scale.outer(scale)).all()
