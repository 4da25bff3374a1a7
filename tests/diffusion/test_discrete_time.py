"""The bound in T steps under each reverse variance, against the exact mixture and KLs of
Gaussians."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import nn
from torch.distributions import Normal, kl_divergence

from triptych.diffusion.bound import Bound
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.learned_schedule import Monotone
from triptych.diffusion.loss import NCSN, Elbo, MinSNR, Sigmoid, Simple, Vlb
from triptych.diffusion.loss import MuTilde as MuTildeLoss
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.reverse_variance import (
    Beta,
    BetaTilde,
    Learned,
    Optimal,
    WithFraction,
    step_kl,
    step_of,
)
from triptych.diffusion.schedule import BetaLinear, Cosine, Linear

from .oracles import generator, normal, refused, ring_mixture

BITS = 2 * math.log(2)
VP = VariancePreserving()


def hybrid(*arguments) -> Objective:
    """Return iDDPM's objective: a loss and the term of a learned reverse variance."""
    return Objective(*arguments, variance="learned")


def epsilon_mse(gamma: float, points: int = 160) -> float:
    """Return E|eps - eps*|^2 / d = 1 - sigma^2 E|score|^2 / d on the ring, by quadrature without
    the package's code."""
    alpha, variance = 1 / math.sqrt(1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
    spread = alpha**2 * 0.15**2 + variance
    angle = torch.arange(8).double() * (2 * math.pi / 8)
    means = 1.5 * alpha * torch.stack([angle.cos(), angle.sin()], 1)
    reach = 1.5 * alpha + 7 * math.sqrt(spread)
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    pull = torch.cartesian_prod(axis, axis).unsqueeze(1) - means
    log_parts = -0.5 * pull.square().sum(2) / spread - math.log(8 * 2 * math.pi * spread)
    score = (log_parts.softmax(1).unsqueeze(2) * pull).sum(1) / spread
    mean_square = (log_parts.logsumexp(1).exp() * score.square().sum(1)).sum() * (
        axis[1] - axis[0]
    ) ** 2
    return 1 - variance * mean_square.item() / 2


@pytest.fixture(scope="module")
def exact():
    """Return (gap, nats) without drawing. gap(schedule, steps) is the excess over continuous time
    in bits/dim for each variance, nats is the continuous-time term."""
    nodes = np.linspace(-10, 8, 61)
    curve = CubicSpline(nodes, [epsilon_mse(float(g)) for g in nodes])
    # 1/2 d times the mean squared error, integrated over gamma; d = 2
    ideal = float(curve.integrate(-10, 8))

    def gap(schedule, steps: int) -> list[float]:
        gammas = schedule.gamma(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        low, high = gammas[:-1], gammas[1:]
        error = torch.from_numpy(curve(high.numpy()))
        # The KL is linear in the squares, so their mean gives its mean.
        squares = error.unsqueeze(1).expand(-1, 2)
        alpha, sigma = VP.alpha_sigma(high.unsqueeze(1))
        guess = Prediction("epsilon", 0 * squares, 0 * squares, alpha, sigma)
        return [
            (step_kl(squares, high, low, v.log_ratio(VP, high, low, guess)).sum().item() - ideal)
            / BITS
            for v in (BetaTilde(), Beta(), Optimal(high, error))
        ]

    return gap, ideal


@pytest.mark.parametrize("schedule", [Linear(-10, 8), Cosine(-10, 8), BetaLinear(-10, 8)])
@pytest.mark.parametrize("steps", [9, 50])
def test_discrete_time_bound_matches_exact_gap_for_each_variance(exact, schedule, steps):
    draws, mixture, n = generator(steps), ring_mixture(), 50_000
    denoiser = Oracle(mixture, VP)
    x, _ = mixture.sample(n, draws)
    t, eps = torch.rand(n, generator=draws), torch.randn(n, 2, generator=draws)
    tilde, beta, optimal = exact[0](schedule, steps)
    assert 0 < optimal < beta < tilde
    for variance, expected in (("beta_tilde", tilde), ("beta", beta)):
        nats = Bound(schedule, None, steps, variance).diffusion(denoiser, x, t, eps).nats.double()
        error = nats.std().item() / math.sqrt(n)
        assert abs(nats.mean().item() - (expected * BITS + exact[1])) < 3.5 * error


def test_step_kl_matches_torch_kl_divergence():
    x, guess_x, eps = normal(3, 5, 3)
    gamma_t, gamma_s = torch.tensor(
        [[2.0, 0.0, -3.0, 5.0, 1.0], [1.0, -4.0, -3.5, 0.0, -9.0]]
    ).double()
    (alpha, sigma), (a_s, s_s) = (
        [a[:, None] for a in VP.alpha_sigma(g)] for g in (gamma_t, gamma_s)
    )
    z = alpha * x + sigma * eps
    guess = Prediction("x0", guess_x, z, alpha, sigma)
    guess.fraction = torch.rand(5, 3, generator=generator(), dtype=torch.float64)
    squares = guess.epsilon_error(x, eps).square()
    true, ours = VP.posterior(z, x, gamma_t, gamma_s), VP.posterior(z, guess_x, gamma_t, gamma_s)
    error = torch.tensor([0.1, 0.9]).double()
    for variance in (Beta(), Learned(), Optimal(torch.tensor([-9.0, 5.0]).double(), error)):
        log_ratio = variance.log_ratio(VP, gamma_t, gamma_s, guess)
        std = ours.std * torch.exp(0.5 * log_ratio)
        p, q = (Normal(a.mean, s.expand_as(z)) for a, s in ((true, true.std), (ours, std)))
        assert torch.allclose(
            step_kl(squares, gamma_t, gamma_s, log_ratio), kl_divergence(p, q).sum(1), rtol=1e-9
        )
        if isinstance(variance, Beta):  # V is the variance of the forward step
            assert torch.allclose(std.square(), sigma**2 - (alpha / a_s) ** 2 * s_s**2)


class Fixed(nn.Module):
    """A network that returns ``eps`` and ``v`` for every input."""

    def __init__(self):
        super().__init__()
        self.eps, self.v = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, z, gamma, condition):
        return torch.stack([self.eps.expand_as(z), self.v.expand_as(z)], 1)


def test_hybrid_objective_separates_mean_and_variance_gradients():
    network = Fixed()
    denoiser = Denoiser(network, WithFraction(Output("epsilon")), VP)
    schedule, steps = Linear(-6, 6), 7
    x, eps = torch.randn(2, 64, 3, generator=generator())
    t = torch.rand(64, generator=generator(1))

    def slopes(term):
        return torch.autograd.grad(term.nats.mean(), [network.eps, network.v], allow_unused=True)

    plain, both = (
        make("epsilon", Elbo(), steps)(denoiser, schedule, x, t, eps)
        for make in (Objective, hybrid)
    )
    bound = Bound(schedule, None, steps, "learned").diffusion(denoiser, x, t, eps)
    (of_mean, of_variance), (of_plain, _), (_, of_bound) = (
        slopes(term) for term in (both, plain, bound)
    )
    assert torch.equal(of_mean, of_plain) and of_variance != 0
    assert torch.allclose(of_variance, of_bound)


def test_bound_refuses_variance_without_steps_or_unknown_variance():
    bound = functools.partial(Bound, Linear(-1, 1), None)
    refused(lambda: bound(5, "betta"), "beta_tilde, beta, optimal, learned")
    refused(lambda: bound(None, "optimal"), "bound.variance=optimal", "bound.steps=T")
    oracle, x, t = Oracle(ring_mixture(), VP), torch.zeros(4, 2), torch.full((4,), 0.5)
    refused(
        lambda: bound(5, "learned").diffusion(oracle, x, t, x), "this denoiser predicts no variance"
    )
    with pytest.raises(RuntimeError, match="call measure"):
        bound(5, "optimal").diffusion(oracle, x, t, x)


# many steps ---------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The exact epsilon of a mixture as a network would give it, with the fraction of a learned
    variance."""

    process = VP

    def __init__(self):
        super().__init__()
        self.oracle = Oracle(ring_mixture(), VP)

    def forward(self, z, gamma, condition=None):
        guess = self.oracle(z, gamma)
        guess.fraction = torch.full_like(z, 0.5)
        return guess


def many_draws(dtype, n):
    draws = generator(7)
    x, _ = ring_mixture().sample(n, draws)
    t = (torch.rand((), generator=draws) + torch.arange(n) / n) % 1  # float32, as in a run
    eps = torch.randn(n, 2, generator=draws, dtype=torch.float64)
    return x.to(dtype), t.clamp(max=1 - 2**-24), eps.to(dtype)


MANY = [10**2, 10**3, 10**5, 10**7, 10**9]
EXACT = many_draws(torch.float64, 1000)
CURVES = [Linear(-10, 8), Cosine(-10, 8), BetaLinear(-10, 8), Monotone(-10, 8)]
of_curves = pytest.mark.parametrize("schedule", CURVES, ids=lambda s: type(s).__name__)


@of_curves
@torch.no_grad()
def test_discrete_time_bound_decreases_to_continuous_bound(schedule):
    """L_T > L_2T and L_T -> L_inf (VDM, app. F and eq. 17), in double, up to the largest accepted
    number of steps."""
    limit = (
        Bound(schedule, None).diffusion(Plain(), EXACT[0], EXACT[1].double(), EXACT[2]).nats.mean()
    )
    gaps = []
    for steps in MANY:
        nats = Bound(schedule, None, steps).diffusion(Plain(), *EXACT).nats
        gaps.append((nats.mean() - limit).item())
    # The gap is Theta(1 / T), up to noise from the places of the draws within a step.
    for more, fewer in zip(gaps[1:], gaps[:-1], strict=True):
        assert 0 < more < fewer / 4, gaps


@of_curves
@pytest.mark.parametrize("variance", ["beta_tilde", "beta", "learned", "optimal"])
@torch.no_grad()
def test_discrete_time_bound_at_many_steps_is_accurate_in_float32(schedule, variance):
    x, t, eps = many_draws(torch.float32, 1000)
    limit = Bound(schedule, None).diffusion(Plain(), x, t, eps).nats.double().mean().item()
    for steps in (10**5, 10**7, 10**9):
        bound = Bound(schedule, None, steps, variance)
        bound.calibrate(Plain(), x[:64])
        nats = bound.diffusion(Plain(), x, t, eps).nats
        assert nats.dtype == torch.float32
        assert nats.double().mean().item() == pytest.approx(
            limit, rel=2e-3 if steps < 10**7 else 2e-4
        )


def test_optimal_variance_is_measured_at_up_to_32_levels():
    for n, nodes in ((5, 5), (100, 32)):
        levels, variance = torch.linspace(-5.0, 4.0, n).double(), Optimal()
        variance.measure(
            Oracle(ring_mixture(), VariancePreserving()), levels, torch.zeros(2, 2).double()
        )
        torch.testing.assert_close(variance.gamma, torch.linspace(-5.0, 4.0, nodes).double())


@of_curves
@pytest.mark.parametrize("loss", [Elbo(), Simple(), MinSNR(), Sigmoid(), Vlb(), MuTildeLoss()])
def test_loss_at_many_steps_converges_to_continuous_time(schedule, loss):
    x, t, eps = many_draws(torch.float32, 500)
    several, most = (
        Objective("epsilon", loss, steps)(Plain(), schedule, x, t, eps).nats.mean().item()
        for steps in (10**5, 10**9)
    )
    # The mean moves by 1 / T per step, so loss T^2 tends to a limit.
    if isinstance(loss, MuTildeLoss):
        several, most = several * 10**10, most * 10**18
    else:
        loss = Elbo() if isinstance(loss, Vlb) else loss
        own = Objective("epsilon", loss)(Plain(), schedule, x, t, eps).nats.mean().item()
        assert most == pytest.approx(own, rel=1e-4)
    assert several == pytest.approx(most, rel=2e-2)


# iDDPM's hybrid loss ------------------------------------------------------------------------------


def iddpm(x, eps, z, eps_hat, v, alphas_bar, t):
    """Return L_simple + .001 L_vlb of a batch at steps t >= 1 (0 is the cleanest), written in
    numpy.

    Nichol & Dhariwal 2021, eqs. 14 to 16 and their code: a mean over dimensions of the squared
    error, and num_timesteps / 1000 times the mean over dimensions of one KL in bits.
    """
    mean = lambda a: a.reshape(len(a), -1).mean(1)  # noqa: E731
    column = lambda a: a[:, None]  # noqa: E731
    bar, before = column(alphas_bar[t]), column(alphas_bar[t - 1])
    beta = 1 - bar / before
    tilde = beta * (1 - before) / (1 - bar)
    posterior = lambda start: (  # noqa: E731
        np.sqrt(before) * beta / (1 - bar) * start
        + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * z
    )
    guess = (z - np.sqrt(1 - bar) * eps_hat) / np.sqrt(bar)
    fraction = (v + 1) / 2
    log_variance = fraction * np.log(beta) + (1 - fraction) * np.log(tilde)
    kl = 0.5 * (
        -1.0
        + log_variance
        - np.log(tilde)
        + np.exp(np.log(tilde) - log_variance)
        + (posterior(x) - posterior(guess)) ** 2 * np.exp(-log_variance)
    )
    steps = len(alphas_bar) - 1
    return mean((eps - eps_hat) ** 2) + mean(kl) / np.log(2) * steps / 1000


def test_hybrid_loss_matches_iddpm():
    steps, schedule, d = 20, Cosine(-9.0, 7.0), 6
    network = Fixed()
    denoiser = Denoiser(network, WithFraction(Output("epsilon")), VP)
    x, eps = normal(2, 50, d)
    k = torch.randint(1, steps + 1, (50,), generator=generator(1))
    t = (k - 0.5) / steps
    loss = hybrid("epsilon", Simple(), steps)(denoiser, schedule, x, t.double(), eps).nats.detach()
    bars = torch.sigmoid(-schedule.gamma(torch.arange(steps + 1).double() / steps))
    z = bars[k, None].sqrt() * x + (1 - bars[k, None]).sqrt() * eps
    said = (np.full((50, d), p.item()) for p in (network.eps, network.v))
    theirs = iddpm(x.numpy(), eps.numpy(), z.numpy(), *said, bars.numpy(), k.numpy())
    np.testing.assert_allclose(loss.numpy() / d, theirs, rtol=1e-5)


@pytest.mark.parametrize("variance", ["learned", "beta", "beta_tilde"])
def test_vlb_loss_equals_bound_and_trains_mean_and_variance(variance):
    """iDDPM's L_vlb is the T-step bound's own term, and its gradient is that of the KL, without
    stop-gradient."""
    steps, schedule, network = 20, Cosine(-9.0, 7.0), Fixed()
    output = WithFraction(Output("epsilon"))
    denoiser = Denoiser(network, output, VP)
    x, eps = normal(2, 50, 6)
    t = torch.rand(50, generator=generator(1), dtype=torch.float64)
    loss = Objective(output, Vlb(), steps, variance=variance)(denoiser, schedule, x, t, eps).nats
    term = Bound(schedule, None, steps, variance).diffusion(denoiser, x, t, eps).nats
    torch.testing.assert_close(loss, term)
    if variance == "beta_tilde":
        plain = Objective(output, Elbo(), steps)(denoiser, schedule, x, t, eps).nats
        torch.testing.assert_close(loss, plain)
    slopes = torch.autograd.grad(loss.sum(), [network.eps, network.v], allow_unused=True)
    upper, lower = step_of(schedule, t, steps)
    rise = torch.expm1(upper - lower)
    ratio = {"learned": (network.v.detach() + 1) / 2, "beta": 1.0, "beta_tilde": 0.0}[variance]
    full = torch.log(VP.alpha_sigma(upper)[1] / VP.alpha_sigma(lower)[1])
    log_ratio = ratio * 2 * full
    off = (network.eps.detach() - eps).sum(1)
    of_mean = (steps * torch.exp(-log_ratio) * rise * off).sum()
    torch.testing.assert_close(slopes[0], of_mean.to(slopes[0]), rtol=1e-5, atol=0)
    if variance == "learned":
        squared = (network.eps.detach() - eps).square().sum(1)
        of_ratio = 0.5 * steps * (6 - torch.exp(-log_ratio) * (6 + rise * squared))
        torch.testing.assert_close(
            slopes[1], (of_ratio * full).sum().to(slopes[1]), rtol=1e-5, atol=0
        )


def test_vlb_weight_defaults_by_loss_or_is_required():
    assert hybrid("x0", Elbo(), 5).vlb_weight == hybrid("x0", Sigmoid(), 5).vlb_weight == 1
    assert hybrid("x0", Simple(), 5, 0.3).vlb_weight == 0.3
    for loss in (MinSNR(), NCSN()):
        refused(
            lambda loss=loss: hybrid("x0", loss, 5),
            "vlb_weight=null: must be a positive number with",
        )
