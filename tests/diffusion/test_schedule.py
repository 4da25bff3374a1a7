"""Schedules: endpoints, slopes, inverses, and the definitions in the papers."""

import functools
import math

import pytest
import torch

from triptych.diffusion.schedule import BetaLinear, Cosine, Linear, Schedule, Sigmoid, Straight

from .oracles import SCHEDULES, refused

ENDPOINTS = [(-13.3, 10.0), (2.0, 5.0), (-9.0, -3.0)]  # around u = 1/2, above and below it
KINDS = [
    *SCHEDULES.values(),
    Straight,
    lambda a, b: BetaLinear(a, b, 0.5, 3.0),
    lambda a, b: Sigmoid(a, b, 0.4),
    lambda a, b: Sigmoid(a, b, 10.0),  # tau = 0.3
    lambda a, b: Sigmoid(a, b, 30.0),  # tau = 0.1
]
every = pytest.mark.parametrize(
    "kind", KINDS, ids=[*SCHEDULES, "straight", "beta_low", "flat", "sharp", "sharpest"]
)
ends = pytest.mark.parametrize("low, high", ENDPOINTS)


def times(n=1001):
    return torch.linspace(0, 1, n, dtype=torch.float64)


@every
@ends
def test_schedule_reaches_endpoints_and_dgamma_is_derivative(kind, low, high):
    schedule = kind(low, high)
    assert (schedule.gamma_min, schedule.gamma_max) == (low, high)
    assert schedule.gamma(times())[[0, -1]].tolist() == pytest.approx([low, high], abs=1e-7)
    assert (schedule.gamma(times()).diff() > 0).all() and (schedule.dgamma(times()) > 0).all()
    t = times().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.gamma(t).sum(), t)
    torch.testing.assert_close(schedule.dgamma(t), slope, rtol=1e-7, atol=0)
    h, t = 1e-6, times()[10:-10]
    central = (schedule.gamma(t + h) - schedule.gamma(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.dgamma(t), central, rtol=1e-5, atol=0)


@every
@ends
def test_t_of_is_the_inverse(kind, low, high):
    schedule = kind(low, high)
    torch.testing.assert_close(schedule.t_of(schedule.gamma(times())), times(), rtol=0, atol=1e-8)
    gamma = torch.linspace(low, high, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.gamma(schedule.t_of(gamma)), gamma, rtol=0, atol=1e-7)
    # In float32, errors of up to 1e-5 in gamma and in t itself are allowed.
    slack = 1e-5 + 1e-5 / schedule.dgamma(times())
    again = schedule.t_of(schedule.gamma(times()).float()).double()
    assert ((again - times()).abs() < slack).all()


@every
@ends
def test_schedule_is_accurate_in_float32(kind, low, high):
    """Rounding t by 2^-24 moves gamma by 2^-24 gamma'(t); a few such roundings are allowed."""
    schedule = kind(low, high)
    t = times()
    error = (schedule.gamma(t.float()).double() - schedule.gamma(t.float().double())).abs()
    slope = schedule.dgamma(t.float().double())
    # Near t = 1 the curve is steep in u = start + length t, which has an absolute rounding error of
    # 2^-24 |u|.
    assert error.max() < 1e-3
    assert (error < 3e-6 + 4 * 2.0**-24 * slope * 10).all()
    torch.testing.assert_close(schedule.dgamma(t.float()).double(), slope, rtol=2e-4, atol=0)
    assert schedule.gamma(t.float()).dtype == torch.float32


@every
@pytest.mark.parametrize("low, high", [(-50.0, 50.0), (-13.0, 13.0), (49.0, 50.0), (-50.0, -49.0)])
def test_schedule_reaches_extreme_endpoints_in_float32(kind, low, high):
    """gamma in [-50, 50] is accepted, so float32 must reach it: there 1 - u is e^-25 or e^-50."""
    schedule = kind(low, high)
    t = torch.tensor([0.0, 0.3, 1.0])
    gamma, slope = schedule.gamma(t).double(), schedule.dgamma(t).double()
    assert gamma[[0, 2]].tolist() == pytest.approx([low, high], abs=1e-4)
    t = t.double()
    torch.testing.assert_close(gamma, schedule.gamma(t), rtol=0, atol=1e-4)
    torch.testing.assert_close(slope, schedule.dgamma(t), rtol=1e-4, atol=0)
    assert (slope > 0).all()
    torch.testing.assert_close(schedule.t_of(schedule.gamma(times())), times(), rtol=0, atol=1e-8)


def test_schedule_keeps_shape_of_t():
    for kind in SCHEDULES.values():
        t = torch.rand(3, 4)
        schedule = kind(-5.0, 5.0)
        assert (
            schedule.gamma(t).shape == schedule.dgamma(t).shape == schedule.t_of(t).shape == t.shape
        )
        assert schedule.gamma(torch.tensor(0.5)).shape == ()


def test_linear_is_linear():
    torch.testing.assert_close(Linear(-10.0, 8.0).gamma(times()), -10 + 18 * times())
    assert (Linear(-10.0, 8.0).dgamma(times()) == 18).all()


def sigmoids(end, tau):  # Chen 2023, with start = -end
    def alpha2(u):
        first, last = (
            torch.sigmoid(torch.tensor(s / tau, dtype=torch.float64)) for s in (-end, end)
        )
        return (last - torch.sigmoid((u * 2 * end - end) / tau)) / (last - first)

    return alpha2


PUBLISHED = [  # alpha^2(u), and the range of u in [0, 1] that is compared
    (Cosine, lambda u: torch.cos(math.pi * u / 2) ** 2, 0.01, 0.98),
    # The exponent is minus the integral of beta.
    (BetaLinear, lambda u: torch.exp(-(0.1 * u + (20 - 0.1) * u**2 / 2)), 0.001, 1.0),
    *(
        (functools.partial(Sigmoid, sharpness=end / tau), sigmoids(end, tau), 0.01, 0.97)
        for end, tau in ((3.0, 1.0), (3.0, 0.5), (3.0, 0.3), (2.0, 1.5))
    ),
]


@pytest.mark.parametrize(("kind", "alpha2", "start", "stop"), PUBLISHED)
def test_alpha_squared_matches_published_formula(kind, alpha2, start, stop):
    low, high = ((1 / alpha2(torch.tensor(u).double()) - 1).log().item() for u in (start, stop))
    ours = torch.sigmoid(-kind(low, high).gamma(times()))
    torch.testing.assert_close(ours, alpha2(start + (stop - start) * times()), rtol=1e-6, atol=1e-8)


def test_beta_linear_follows_the_thousand_betas_of_ddpm():
    log_alpha2 = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)
    gamma = torch.log(torch.expm1(-log_alpha2))
    # Up to where sum beta^2, which the continuous limit drops, matters.
    schedule = BetaLinear(gamma[0].item(), gamma[-1].item())
    ours = schedule.gamma(torch.linspace(0, 1, 1000, dtype=torch.float64))
    assert (ours - gamma).abs().max() < 0.07


def test_endpoints_out_of_order_are_refused():
    for ends in ((5.0, -5.0), (1.0, 1.0)):
        refused(lambda ends=ends: Linear(*ends), "schedule.gamma_min=", "schedule.gamma_max=")
    for low, high in ((20.0, 0.1), (1.0, 1.0)):
        words = "schedule.beta_min=", "schedule.beta_max="
        refused(lambda a=low, b=high: BetaLinear(-10, 8, a, b), *words)


def test_schedule_without_slope_method_is_refused():
    class Bent(Schedule):
        def _curve(self, u):
            return u**3

        def _inverse(self, gamma):
            return gamma.sign() * gamma.abs() ** (1 / 3)

    with pytest.raises(TypeError, match="_slope"):
        Bent(-8.0, 8.0)
