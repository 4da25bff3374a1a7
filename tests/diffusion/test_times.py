"""Times: every density has the same mean loss, and learned densities follow the papers."""

import math

import pytest
import torch

from triptych.diffusion.loss import EDM, EDM2, Elbo, Squared
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import Rectified, VariancePreserving
from triptych.diffusion.schedule import Cosine, Linear, Straight
from triptych.diffusion.times import (
    Adaptive,
    Importance,
    LogitNormal,
    LogNormal,
    Piecewise,
    Stratified,
    Uniform,
)

from .oracles import every_schedule, generator, refused, ring_mixture

ENDS = (-12.4, 8.8)
FIXED = [
    *(Stratified(), Uniform(), LogNormal(), LogNormal(0.5, 2.0)),
    *(LogitNormal(0.0, 1.4), LogitNormal(0.8, 1.5)),
]


def even(n):
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def loss(gamma):
    """Return a made-up loss per unit of gamma, concentrated in the middle, where all densities have
    mass."""
    return torch.exp(-0.5 * ((gamma + 2) / 1.3).square()) * (2 + torch.sin(gamma))


def mean(times, schedule, n=100_001):
    """Return E of the training loss over its own draws u, each divided by its density; u is dense
    at both ends."""
    s = torch.linspace(-16.5, 16.5, n, dtype=torch.float64)
    u = torch.sigmoid(s)
    t, density = times(u, schedule)
    values = loss(schedule.gamma(t)) * schedule.dgamma(t)
    values = values if density is None else values / density
    return torch.trapezoid(values * u * (1 - u), s).item()


def learned(kind, schedule, batches=400):
    """Return times that were told the losses of their own draws, with noise."""
    times, draws = kind.double(), generator()
    for _ in range(batches):
        t, _ = times(torch.rand(64, generator=draws, dtype=torch.float64), schedule)
        noise = 2 * torch.rand(64, generator=draws, dtype=torch.float64)
        times.tell(t, noise * loss(schedule.gamma(t)) * schedule.dgamma(t), schedule)
    return times


@every_schedule
@pytest.mark.parametrize("times", FIXED, ids=lambda t: type(t).__name__)
def test_mean_loss_is_independent_of_times_density(times, kind):
    gamma = torch.linspace(*ENDS, 200_001).double()
    exact = torch.trapezoid(loss(gamma), gamma).item()
    assert mean(times, kind(*ENDS)) == pytest.approx(exact, rel=1e-4)


@every_schedule
def test_mean_loss_is_unchanged_under_adaptive_times(kind):
    schedule = kind(*ENDS)
    gamma = torch.linspace(*ENDS, 200_001).double()
    exact = torch.trapezoid(loss(gamma), gamma).item()
    adaptive = learned(Adaptive(20), schedule)
    assert (adaptive.seen > 0).all() and adaptive.means.max() > 10 * adaptive.means.min()
    assert mean(adaptive, schedule) == pytest.approx(exact, rel=1e-3)


def test_mean_loss_is_unchanged_under_importance_times():
    schedule = Linear(*ENDS)
    steps = 25
    exact = (loss(schedule.gamma(even(steps))) * schedule.dgamma(even(steps))).mean().item()
    importance = learned(Importance(objective_steps=steps), schedule)
    assert (importance.seen >= 10).all()
    assert importance(even(2000), schedule)[1].std() > 0.5
    assert mean(importance, schedule) == pytest.approx(exact, rel=1e-3)


@every_schedule
@pytest.mark.parametrize("times", FIXED, ids=lambda t: type(t).__name__)
def test_times_density_matches_spacing_of_draws(times, kind):
    """The density of t is 1 / (N times the distance to the next draw), and that of gamma is dt /
    dgamma times it."""
    schedule = kind(*ENDS)
    t, density = times(even(20_001), schedule)
    density = torch.ones_like(t) if density is None else density
    inner = slice(200, -200)
    spread = 2 / (20_001 * (t[2:] - t[:-2]))
    torch.testing.assert_close(density[1:-1][inner], spread[inner], rtol=2e-3, atol=0)
    gamma, slope = schedule.gamma(t), schedule.dgamma(t)
    per_gamma = times.per_gamma(gamma, slope, t)
    kept = (density / (per_gamma * slope)).reciprocal()  # the share between the ends
    assert 0.95 < kept.max() <= 1 + 1e-9 and kept.max() - kept.min() < 1e-9


def test_log_normal_is_normal_in_the_log_of_sigma():
    schedule, process = Cosine(-24.0, 16.0), VariancePreserving()
    t, _ = LogNormal(-1.2, 1.2)(even(4001), schedule)
    alpha, sigma = process.alpha_sigma(schedule.gamma(t))
    log_sigma = (sigma / alpha).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=2e-3)


def effective(times, loss, schedule, space="epsilon", process=None):
    return Objective(space, loss, times=times).effective_share(
        process or VariancePreserving(), schedule
    )


def test_effective_share_matches_kish_effective_sample_size():
    """For draws of log sigma: (sum w)^2 / (n sum w^2) of the terms w = f / q, which are 0 beyond
    the ends."""
    schedule, times = Linear(-8.0, 6.0), LogNormal(-1.2, 1.5)
    gamma = 2 * (-1.2 + 1.5 * torch.randn(400_000, generator=generator(0)).double())
    terms = torch.sigmoid(-gamma) / times.per_gamma(gamma, gamma, gamma)
    terms = torch.where((gamma > -8) & (gamma < 6), terms, 0.0)
    kish = terms.sum().square() / (len(terms) * terms.square().sum())
    assert effective(times, Elbo(), schedule) == pytest.approx(kish.item(), rel=0.02)


def test_effective_share_is_one_if_times_match_loss():
    """EDM's loss is a squared error in F, and the best linear prediction of F has the same error at
    all levels."""
    times = LogNormal(-1.2, 1.2)
    assert effective(times, EDM(-1.2, 1.2, 1.0), Linear(-22.0, 16.0)) == pytest.approx(1, abs=1e-3)
    assert effective(Stratified(), Elbo(), Linear(-8.0, 6.0)) == 1


SHIPPED = {  # settings of the papers and of the documentation
    "the default of both": (LogNormal(), Elbo(), Linear(-8.0, 6.0)),
    "EDM": (LogNormal(), EDM(), Linear(-12.43, 8.76)),
    "EDM, small": (LogNormal(-0.795), EDM(-0.795, 1.2, 0.75), Linear(-8.0, 6.0)),
    "EDM2": (LogNormal(-0.4, 1.0), EDM2(), Linear(-8.0, 6.0)),
    "EDM2, paper": (LogNormal(-0.8, 1.6), EDM2(-0.8, 1.6), Linear(-12.43, 8.76)),
    **{
        f"JiT, {space}": (
            LogNormal(0.8, 0.8),
            Squared(space, LogNormal(0.8, 0.8)),
            Straight(-12.0, 12.0),
        )
        for space in ("x0", "epsilon", "velocity")
    },
    "SD3": (LogitNormal(), Squared("velocity", LogitNormal()), Straight(-8.0, 6.0)),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_effective_share_of_shipped_settings_is_above_30_percent(name):
    times, loss, schedule = SHIPPED[name]
    assert effective(times, loss, schedule, process=Rectified()) > 0.3


@pytest.mark.parametrize(
    ("times", "loss"),
    [
        (LogNormal(9.0, 0.2), Elbo()),  # no draw falls between the ends
        (LogNormal(9.0, 0.2), EDM(9.0, 0.2)),
        # 1% of the draws are between the ends, and all weight is beyond
        (LogNormal(5.8, 1.2), Elbo()),
        (LogNormal(-1.2, 0.5), Elbo()),  # 98% of the draws are between, some with a weight of 10^12
        (LogitNormal(), Elbo()),
    ],
)
def test_effective_share_of_mismatched_times_is_below_1_percent(times, loss):
    assert not effective(times, loss, Linear(-8.0, 6.0)) >= 0.01


def test_importance_keeps_the_last_losses_of_each_step():
    """The result equals that of recording one by one in the order of the batch (iDDPM's history),
    for any number of items per step."""
    times, schedule = Importance(history=3, objective_steps=4), Linear(-6.0, 5.0)
    kept: list[list[float]] = [[] for _ in range(4)]
    draws = generator(3)
    for _ in range(6):
        t, nats = torch.rand(2, 9, generator=draws)
        times.tell(t, nats, schedule)
        for step, value in zip((t * 4).long().tolist(), nats.tolist(), strict=True):
            kept[step] = [*kept[step], value][-3:]
        for step in range(4):
            found = sorted(times.losses[step].tolist())[3 - len(kept[step]) :]
            assert found == pytest.approx(sorted(kept[step]))


def test_importance_follows_iddpm_once_history_is_full():
    """Nichol & Dhariwal 2021, eq. 18; a thousandth of the draws stays uniform."""
    times, schedule = Importance(history=2, objective_steps=4), Linear(-6.0, 5.0)
    middle = torch.tensor([0.1, 0.4, 0.6, 0.9])
    times.tell(middle, torch.tensor([1.0, 2.0, 3.0, 4.0]), schedule)
    times.tell(middle[:3], torch.tensor([1.0, 4.0, 5.0]), schedule)
    assert (times(even(64), schedule)[1] == 1).all()
    times.tell(middle[3:], torch.tensor([0.0]), schedule)
    root = torch.tensor([1.0, math.sqrt(10), math.sqrt(17), math.sqrt(8)])
    expected = 0.999 * 4 * root / root.sum() + 0.001
    t, density = times(even(8000).float(), schedule)
    for step in range(4):
        inside = (t * 4).long() == step
        assert density[inside][0].item() == pytest.approx(expected[step].item(), rel=1e-6)
        assert inside.float().mean().item() == pytest.approx(expected[step].item() / 4, abs=1.5e-4)


def test_importance_supports_up_to_one_million_steps():
    """E 1 / p = 1 and E t / p = 1 / 2 over draws, so sums of a million rates are accurate."""
    times = Importance(history=1, objective_steps=10**6)
    times.seen.fill_(1)
    times.losses.copy_(torch.rand(10**6, 1, generator=generator()) + 0.01)
    u = torch.arange(2**22) / 2**22
    t, density = times(u, Linear(-10, 8))
    assert (1 / density).double().mean().item() == pytest.approx(1, abs=1.5e-4)
    assert (t / density).double().mean().item() == pytest.approx(0.5, abs=1.5e-4)
    refused(lambda: Importance(), "objective/times=importance", "objective.steps=T")


def test_adaptive_makes_the_mean_loss_equal_at_all_levels():
    """Kingma & Gao 2023: p(gamma) ~ E of the weighted error, so loss / p is the same at all
    levels."""
    schedule = Cosine(*ENDS)
    times = learned(Adaptive(bins=12, decay=0.99, uniform=1e-6), schedule, batches=1000)
    t, density = times(even(50_000), schedule)
    gamma = schedule.gamma(t)
    each = loss(gamma) * schedule.dgamma(t) / density
    place = ((gamma - ENDS[0]) / (ENDS[1] - ENDS[0]) * 12).long()
    means = torch.stack([each[place == k].mean() for k in range(3, 9)])
    assert means.std() / means.mean() < 0.2
    uniform = loss(even(6) * 10 - 7)
    assert uniform.std() / uniform.mean() > 0.5


def test_importance_and_adaptive_times_reduce_variance():
    """The variance of a one-sample estimate of the bound with the exact denoiser: importance <
    linear log SNR << cosine.

    This is the order of VDM fig. 4b, and iDDPM's reason for importance sampling.
    """
    process, n, random = VariancePreserving(), 4000, generator()
    denoiser = Oracle(ring_mixture(), process)
    x = denoiser.mixture.sample(n, random)[0].double()
    eps = torch.randn(n, 2, generator=random, dtype=torch.float64)

    def draws(schedule, times, u):
        t, density = times(u, schedule)
        gamma, of_x, of_eps = schedule.gamma(t), x[: len(u)], eps[: len(u)]
        guess = denoiser(process.diffuse(of_x, gamma, of_eps), gamma)
        nats = 0.5 * schedule.dgamma(t) * guess.epsilon_error(of_x, of_eps).square().sum(1)
        return t, nats, nats if density is None else nats / density

    u = torch.rand(n, generator=random, dtype=torch.float64)
    variance = {}
    for name, schedule in (("linear", Linear(-10.0, 8.0)), ("cosine", Cosine(-10.0, 8.0))):
        for times in (Uniform(), Importance(objective_steps=100), Adaptive(50)):
            times = times.double()
            # The densities are learned from other losses than those that judge them.
            for _ in range(0 if isinstance(times, Uniform) else 8):
                few = torch.rand(n // 4, generator=random, dtype=torch.float64)
                t, nats, _ = draws(schedule, times, few)
                times.tell(t, nats, schedule)
            variance[name, type(times).__name__] = draws(schedule, times, u)[2].var().item()
    assert variance["linear", "Uniform"] < 0.3 * variance["cosine", "Uniform"]
    for name in ("Importance", "Adaptive"):
        assert variance["cosine", name] < 0.3 * variance["cosine", "Uniform"]
        assert variance["linear", name] < 0.8 * variance["linear", "Uniform"]


def test_piecewise_draws_match_their_density():
    u = even(100_000)
    density = Piecewise(torch.tensor([0.0, 0.0, 5.0, 1.0, 30.0]).double(), 0.2)
    t, p = density(u)
    for power in range(4):
        assert (t**power / p).mean().item() == pytest.approx(1 / (power + 1), abs=2e-4)
    assert (1 / p).max().item() == pytest.approx(5.0)
    assert (Piecewise(torch.ones(7).double(), 0.2)(u)[0] - u).abs().max() < 1e-12
