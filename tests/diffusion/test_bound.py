"""The bound against exact entropies, exact mutual informations and the KL of two Gaussians.

For a Gaussian everything under the expectation is quadratic in (x, eps), so the cubature of
``oracles`` averages the code's own output exactly.
"""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import Condition
from triptych.diffusion.decoder import Categorical, GaussianDensity
from triptych.diffusion.denoiser import Denoiser, LevelOutput
from triptych.diffusion.draws import Draw, stratified_times
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.prediction import SPACES
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.schedule import Linear

from .oracles import (
    Says,
    Wrong,
    close,
    correlated,
    cubature,
    every_schedule,
    generator,
    legendre,
    network,
    normal,
    oracle,
    ring,
    trapezoid_times,
)

VP = VariancePreserving()
LOW, HIGH = -10.0, 8.0
sizes = pytest.mark.parametrize("d", [1, 2, 16])


# --- one step is the KL of two Gaussians ----------------------------------------------------------


def some_batch(shape=(2, 3), n=24):
    x, eps, eps_0 = normal(3, n, *shape)
    return x, Draw((torch.arange(n, dtype=torch.float64) + 0.5) / n, eps, eps_0)


@pytest.mark.parametrize("process", [VP, VarianceExploding()], ids=["vp", "ve"])
@pytest.mark.parametrize("steps", [1, 7, 1000])
@every_schedule
def test_diffusion_term_is_t_times_kl_between_posteriors(process, steps, kind):
    """torch's KL(q(z_s | z_t, x) || q(z_s | z_t, x_hat)) for any denoiser, with t = ceil(t T) / T
    (VDM)."""
    schedule, denoiser = kind(-6.0, 5.0), network(Wrong(), "v", process)
    x, draw = some_batch()
    upper = torch.ceil(draw.t * steps) / steps
    gamma_t, gamma_s = schedule.gamma(upper), schedule.gamma(upper - 1 / steps)
    z = process.diffuse(x, gamma_t, draw.eps)
    q = process.posterior(z, x, gamma_t, gamma_s)
    p = process.posterior(z, denoiser(z, gamma_t).x0, gamma_t, gamma_s)
    kl = kl_divergence(*(Independent(Normal(a.mean, a.std.expand_as(x)), 2) for a in (q, p)))
    term = Bound(schedule, None, steps).diffusion(denoiser, x, draw.t, draw.eps)
    close(term.nats, steps * kl)
    torch.testing.assert_close(term.gamma, gamma_t)
    # The other two forms in the literature.
    guess = denoiser(z, gamma_t)
    close(term.squared_error, (guess.epsilon - draw.eps).square().sum((1, 2)))
    close(kl, 0.5 * torch.expm1(gamma_t - gamma_s) * term.squared_error)
    snr_fall = torch.exp(-gamma_s) - torch.exp(-gamma_t)
    close(kl, 0.5 * snr_fall * (guess.x0 - x).square().sum((1, 2)))


@pytest.mark.parametrize("steps", [None, 5])
def test_elbo_terms_are_prior_reconstruction_and_diffusion(steps):
    """The prior depends on x, the reconstruction on eps_0, the diffusion term on t and eps; the
    total is their sum."""
    schedule, denoiser, decoder = Linear(-6.0, 5.0), network(Wrong(), "epsilon"), GaussianDensity()
    x, draw = some_batch()
    bound = Bound(schedule, decoder, steps)
    elbo, term = bound(denoiser, x, draw), bound.diffusion(denoiser, x, draw.t, draw.eps)
    ends = torch.tensor([-6.0, 5.0]).double()
    torch.testing.assert_close(elbo.prior, VP.prior_kl(x, ends[1]))
    z_0 = VP.diffuse(x, ends[0], draw.eps_0)
    torch.testing.assert_close(elbo.reconstruction, decoder.nats(denoiser, x, z_0, ends[0]))
    torch.testing.assert_close(term.nats, elbo.diffusion)
    torch.testing.assert_close(elbo.total, elbo.prior + elbo.reconstruction + elbo.diffusion)
    assert elbo.total.shape == (24,)


def test_bound_passes_condition_to_denoiser():
    parts = ring()
    x, label = GaussianMixture(*parts).sample(24, generator())
    label = Condition(label=label)
    _, draw = some_batch((2,))
    bound = Bound(Linear(-6.0, 5.0), GaussianDensity())
    denoiser = oracle(parts)
    told = bound(denoiser, x.double(), draw, label).diffusion
    torch.testing.assert_close(
        told, bound.diffusion(denoiser, x.double(), draw.t, draw.eps, label).nats
    )
    # Knowing the label is worth log 8 = 2.08 nats.
    assert told.mean() < bound(denoiser, x.double(), draw).diffusion.mean() - 1


# --- one Gaussian: everything in closed form ------------------------------------------------------


def gaussian_points(d):
    """Return (parts, eigenvalues, x, eps). The plain mean over these points is exact for quadratics
    in (x, eps)."""
    parts, p = correlated(d), cubature(2 * d)
    x = parts[1] + p[:, :d] @ torch.linalg.cholesky(parts[2][0]).T
    return parts, torch.linalg.eigvalsh(parts[2][0]), x, p[:, d:]


def expected(schedule, denoiser, x, eps, t, weights, steps=None):
    """Return the expectation of each of the three terms over x, eps and t, as floats."""
    n, m = len(t), len(x)
    draw = Draw(t.repeat_interleave(m), eps.repeat(n, 1), eps.repeat(n, 1))
    elbo = Bound(schedule, GaussianDensity(), steps)(denoiser, x.repeat(n, 1), draw)
    terms = (elbo.prior, elbo.reconstruction, elbo.diffusion)
    return [(a.view(n, m).mean(1) @ weights).item() for a in terms]


def information(eigenvalues, gamma):
    """Return I(x; z) of a Gaussian at gamma: 1/2 sum log(1 + SNR c)."""
    return 0.5 * torch.log1p(eigenvalues * math.exp(-gamma)).sum().item()


def nll(parts, x):
    return -MultivariateNormal(parts[1][0], parts[2][0]).log_prob(x)


@sizes
@pytest.mark.parametrize("space", SPACES)
def test_expected_diffusion_term_is_mutual_information_difference(d, space):
    """1/2 int E|eps - eps_hat|^2 dgamma = I(x; z_0) - I(x; z_1) for the exact denoiser (I-MMSE)."""
    parts, eigenvalues, x, eps = gaussian_points(d)
    denoiser = network(Says(oracle(parts), space), space)
    diffusion = expected(Linear(LOW, HIGH), denoiser, x, eps, *legendre(64))[2]
    exact = information(eigenvalues, LOW) - information(eigenvalues, HIGH)
    assert diffusion == pytest.approx(exact, rel=1e-7)


@every_schedule
def test_expected_diffusion_term_depends_on_schedule_endpoints_only(kind):
    parts, eigenvalues, x, eps = gaussian_points(2)
    schedule = kind(LOW, HIGH)
    diffusion = expected(schedule, oracle(parts), x, eps, *trapezoid_times(schedule, 6000))[2]
    exact = information(eigenvalues, LOW) - information(eigenvalues, HIGH)
    assert diffusion == pytest.approx(exact, rel=1e-5)


@sizes
def test_bound_exceeds_gaussian_nll_and_converges_with_endpoints(d):
    """The gap is exactly KL(p(z_1) || prior) plus E KL(p(x | z_0) || N(z_0 / alpha_0,
    e^gamma_0))."""
    parts, eigenvalues, x, eps = gaussian_points(d)
    entropy = nll(parts, x).mean().item()
    gaps = []
    for low, high in ((-2.0, 2.0), (-5.0, 4.0), (-10.0, 8.0), (-13.0, 12.0)):
        terms = expected(Linear(low, high), oracle(parts), x, eps, *legendre(96))
        alpha2 = 1 / (1 + math.exp(high))
        spread = alpha2 * (eigenvalues - 1) + 1  # variances of z_1
        mean = alpha2 * parts[1].square().sum()
        prior_gap = 0.5 * (spread - spread.log() - 1).sum() + 0.5 * mean
        decoder_gap = 0.5 * torch.log1p(math.exp(low) / eigenvalues).sum()
        gaps.append(sum(terms) - entropy)
        # The bound has its endpoints in float32, which costs the prior 1e-7 per dimension.
        assert gaps[-1] == pytest.approx((prior_gap + decoder_gap).item(), rel=1e-4, abs=2e-7 * d)
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > 0
    assert gaps[3] < 1e-3 * d


@sizes
def test_bound_of_single_points_converges_to_nll(d):
    """At wide endpoints the model is the data's distribution, and with the exact denoiser the bound
    is tight."""
    parts, _, _, _ = gaussian_points(d)
    eps, schedule = cubature(d), Linear(-13.0, 12.0)
    for point in GaussianMixture(*parts).sample(8, generator(1))[0].double():
        terms = expected(schedule, oracle(parts), point.expand(2 * d, d), eps, *legendre(96))
        # What remains at gamma 12 and -13 is of order e^-12 |x|^2.
        left = 1e-3 * d + 1e-4 * point.square().sum().item()
        assert sum(terms) == pytest.approx(nll(parts, point).item(), abs=left)


@sizes
def test_monte_carlo_bound_in_float32_matches_nll(d):
    """As in a run: float32 and one draw per item. The tolerance is 3 standard errors and 1e-3 nats
    per dimension."""
    parts, n, draws = correlated(d), 40_000, generator(3)
    x, _ = GaussianMixture(*parts).sample(n, draws)
    noise = torch.randn(2, n, d, generator=draws)
    draw = Draw(stratified_times(n, draws), *noise)
    total = Bound(Linear(-13.0, 12.0), GaussianDensity())(oracle(parts), x, draw).total
    assert total.dtype == torch.float32
    excess = total.double() - nll(parts, x.double())
    stderr = excess.std().item() / math.sqrt(n)
    assert abs(excess.mean().item()) < 3 * stderr + 1e-3 * d


@sizes
@pytest.mark.parametrize("steps", [10, 50, 200])
def test_discrete_time_diffusion_term_is_riemann_sum(d, steps):
    """E L_T = sum_i 1/2 expm1(gamma_i - gamma_{i-1}) E|eps - eps_hat|^2 at gamma_i, with every step
    drawn once."""
    parts, eigenvalues, x, eps = gaussian_points(d)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    even = torch.full_like(t, 1 / steps)
    ours = expected(Linear(LOW, HIGH), oracle(parts), x, eps, t, even, steps)[2]
    gamma = torch.linspace(LOW, HIGH, steps + 1, dtype=torch.float64)
    signal = eigenvalues * torch.exp(-gamma[1:, None])
    exact = 0.5 * torch.expm1(gamma.diff()) @ (signal / (1 + signal)).sum(1)
    assert ours == pytest.approx(exact.item(), rel=1e-7)


# --- data on a grid of levels ---------------------------------------------------------------------


def test_bound_of_exact_level_denoiser_converges_to_entropy():
    """One dimension, three levels, quadrature over eps and t: the total tends to -sum p log p as
    the endpoints widen."""
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)

    class LogPrior(torch.nn.Module):
        def forward(self, z, gamma, condition):
            return prior.log().view(1, 3, 1).expand(len(z), 3, 1)

    denoiser = Denoiser(LogPrior(), LevelOutput(3), VP)
    e = torch.linspace(-8, 8, 321, dtype=torch.float64)
    mass = (prior[:, None] * torch.softmax(-(e**2) / 2, 0)).flatten()
    x, eps = levels.repeat_interleave(321)[:, None], e.repeat(3)[:, None]
    entropy = -(prior * prior.log()).sum().item()
    gaps = []
    for low, high in ((-2.0, 3.0), (-4.0, 5.0), (-8.0, 9.0)):
        t, weights = legendre(64)
        draw = Draw(t.repeat_interleave(963), eps.repeat(64, 1), eps.repeat(64, 1))
        elbo = Bound(Linear(low, high), Categorical(3))(denoiser, x.repeat(64, 1), draw)
        gaps.append((elbo.total.view(64, 963) @ mass @ weights).item() - entropy)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 1e-4


def test_bound_increases_by_squared_distance_to_exact_denoiser():
    """E|eps - eps_hat|^2 = E|eps - eps*|^2 + E|eps* - eps_hat|^2, so the bound ranks denoisers."""
    parts, _, x, eps = gaussian_points(2)

    class Off(torch.nn.Module):
        def forward(self, z, gamma, condition):
            return oracle(parts)(z, gamma).epsilon + 0.1 * z + 0.2

    t, weights = legendre(64)
    best, worse = (
        expected(Linear(LOW, HIGH), a, x, eps, t, weights)[2]
        for a in (oracle(parts), network(Off(), "epsilon"))
    )
    gamma = LOW + (HIGH - LOW) * t
    alpha2 = torch.sigmoid(-gamma)
    # E|z|^2
    square = alpha2 * (parts[1].square().sum() + parts[2][0].trace()) + 2 * torch.sigmoid(gamma)
    cross = 2 * 0.1 * 0.2 * alpha2.sqrt() * parts[1].sum()
    distance = 0.01 * square + cross + 0.04 * 2
    assert worse - best == pytest.approx(0.5 * (HIGH - LOW) * (distance @ weights).item(), rel=1e-7)
