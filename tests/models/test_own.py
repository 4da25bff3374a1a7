"""Parts of one's own: what the bound takes them for is tried before the first step."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.refusal import refused
from triptych.models.own import own_outputs

SCHEDULES = """
import torch
from torch import nn
from triptych.diffusion.learned_schedule import Monotone
from triptych.diffusion.schedule import Cosine, Linear, Schedule


class Power(Schedule):
    def _curve(self, u):
        return torch.sinh(2 * u - 1)

    def _slope(self, u):
        return 2 * torch.cosh(2 * u - 1)

    def _inverse(self, gamma):
        return 0.5 + torch.asinh(gamma) / 2


class Slope(Power):
    def _slope(self, u):
        return 1.05 * super()._slope(u)


class Inverse(Power):
    def t_of(self, gamma):
        return super().t_of(gamma) ** 2


class Ends(Linear):
    def gamma(self, t):
        return 10 * t - 5

    def dgamma(self, t):
        return torch.full_like(t, 10.0)

    def t_of(self, gamma):
        return (gamma + 5) / 10


class Wave(Linear):
    def _curve(self, u):
        return u + 3 * torch.sin(2 * u)

    def _slope(self, u):
        return 1 + 6 * torch.cos(2 * u)


class Steep(Cosine):
    pass


class Learned(Monotone):
    pass


class Single(Linear):
    def _curve(self, u):
        return u.float()


class Table(Linear):
    def __init__(self, gamma_min, gamma_max):
        super().__init__(gamma_min, gamma_max)
        self.raw = nn.Parameter(torch.randn(1000))

    def gamma(self, t):
        knots = torch.cat([self.raw.new_zeros(1), self.raw.exp().cumsum(0)]) / self.raw.exp().sum()
        i = (1000 * t).long().clamp(0, 999)
        return -6 + 12 * (knots[i] + (1000 * t - i) * (knots[i + 1] - knots[i]))

    def dgamma(self, t):
        i = (1000 * t).long().clamp(0, 999)
        return 12 * 1000 * self.raw.softmax(0)[i]

    def t_of(self, gamma):
        knots = self.gamma(torch.linspace(0, 1, 1001, dtype=gamma.dtype))
        i = (torch.searchsorted(knots, gamma) - 1).clamp(0, 999)
        return (i + (gamma - knots[i]) / (knots[i + 1] - knots[i])) / 1000
"""


def check(**parts) -> None:
    with torch.no_grad():
        for _ in own_outputs(SimpleNamespace(**parts)):
            pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Slope", "dgamma is "),
        ("Inverse", "t_of(gamma) is "),
        ("Ends", "gamma is -5; must be -6"),
        ("Wave", "the slope of gamma is -"),
        ("Power", ""),
        ("Steep", ""),
        ("Learned", ""),
        ("Single", ""),
        ("Table", ""),
    ],
)
def test_a_schedule(trusting, name, words):
    file = trusting("own_schedules", SCHEDULES)
    low, high = (-13.3, 5.0) if name == "Steep" else (-6.0, 6.0)
    schedule = getattr(import_module("own_schedules"), name)(gamma_min=low, gamma_max=high)
    if words:
        where = f"({file}:"
        refused(lambda: check(schedule=schedule), f"schedule: {name} at t=", words, where)
    else:
        check(schedule=schedule)
        assert {p.dtype for p in schedule.parameters()} <= {torch.float32}


def test_the_examples_schedule(trusting):
    trusting("mylab", folder=Path(__file__).parents[2] / "examples")
    check(schedule=import_module("mylab.laplace").Laplace(-13.3, 5.0))
