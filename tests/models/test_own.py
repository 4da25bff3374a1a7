"""User-supplied components: the bound's assumptions are checked before the first step."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from tests.refusal import refused, refused_if
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.errors import UserError
from triptych.models.accounting import LoggingModule
from triptych.models.contract import (
    check_gradient,
    check_schedule,
    isolated_evaluation,
    try_sampler,
)
from triptych.networks.mlp import MLP

CPU = torch.device("cpu")
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

class Undefined(Power):
    def _slope(self, u):
        return super()._slope(u) + 0 * torch.sqrt(1 - u)

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

class Single32(Linear):
    def __init__(self, gamma_min, gamma_max):
        super().__init__(gamma_min, gamma_max)
        self.knots = [torch.linspace(-6, 6, 101)]

    def gamma(self, t):
        i = (100 * t).long().clamp(0, 99)
        return torch.lerp(self.knots[0][i], self.knots[0][i + 1], 100 * t - i)

class Half32(Single32):
    def dgamma(self, t):
        return 0.5 * super().dgamma(t)

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


def classes(base: str, method: str, bodies: dict[str, tuple[str, str]]) -> str:
    """Return the source of classes derived from ``base``, given the lines of their ``method``."""
    return "".join(
        f"\nclass {n}({base}):\n    def {method}:\n        {b}\n" for n, (b, _) in bodies.items()
    )


def cases(bodies: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each class's name and, if it is refused, the words of its refusal."""
    return [(name, words) for name, (_, words) in bodies.items()]


@pytest.mark.parametrize(
    ("trains", "words"), [(True, "Linear returns an output without a gradient"), (False, "")]
)
def test_check_gradient_refuses_trainable_network_with_detached_output(trains, words):
    network = nn.Linear(2, 2).requires_grad_(trains)
    raw = network(torch.zeros(4, 2)).detach()
    refused_if(
        lambda: check_gradient("denoiser.network", network, raw),
        words and f"denoiser.network: {words}",
    )


def test_check_gradient_accepts_network_output_with_gradient():
    network = nn.Linear(2, 2)
    check_gradient("denoiser.network", network, network(torch.zeros(4, 2)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Slope", "dgamma is "),
        ("Inverse", "t_of(gamma) is "),
        ("Undefined", "dgamma is nan"),
        ("Ends", "gamma is -5; must be -6"),
        ("Wave", "gamma does not increase"),
        ("Power", ""),
        ("Steep", ""),
        ("Learned", ""),
        ("Single", ""),
        ("Single32", ""),  # it takes no times in double, and is tried in float32
        ("Half32", "dgamma is 6; must be 12"),
        ("Table", ""),
    ],
)
def test_check_schedule_accepts_or_refuses_user_schedule(trusting, name, words):
    file = trusting("own_schedules", SCHEDULES)
    low, high = (-13.3, 5.0) if name == "Steep" else (-6.0, 6.0)
    schedule = getattr(import_module("own_schedules"), name)(gamma_min=low, gamma_max=high)
    refused_if(lambda: check_schedule(schedule, CPU), words, f"schedule: {name} at t=", f"({file}:")
    assert {p.dtype for p in schedule.parameters()} <= {torch.float32}


def test_schedule_outside_of_torch_is_refused(trusting):
    source = (
        "\nclass Outside(Linear):\n    def gamma(self, t):\n        return "
        "super().gamma(t.detach())\n"
    )
    trusting("own_schedules", SCHEDULES + source)
    schedule = import_module("own_schedules").Outside(gamma_min=-6.0, gamma_max=6.0)
    with pytest.raises(UserError, match="Outside returns a gamma without a gradient in t"):
        check_schedule(schedule, CPU)


def test_check_schedule_accepts_mylab_laplace(trusting):
    trusting("mylab", folder=Path(__file__).parents[2] / "examples")
    check_schedule(import_module("mylab.laplace").Laplace(-13.3, 5.0), CPU)


SAMPLERS = """
import torch
from triptych.diffusion.sampler import Sampler

def ddim(z, at):
    return at.guess(z, at.gamma_t).at(*at.process.alpha_sigma(at.gamma_s))

class Noisy(Sampler):
    def __init__(self, steps, grid="gamma"):
        super().__init__(steps, grid, chunk=1)

    def step(self, z, at):
        return ddim(z, at) + 0.1 * at.noise(z)

class Most(Sampler):
    calls = 3

    def step(self, z, at):
        return ddim(z, at)
"""
STEPS = {  # the lines of a sampler's step, and what is wrong with them
    "Plain": ("return ddim(z, at)", ""),
    "Keyword": (
        "guess = at.denoiser(z=z, gamma=at.gamma_t, condition=at.condition); "
        "return guess.at(*at.process.alpha_sigma(at.gamma_s))",
        "",
    ),
    "Twice": (
        "return 0.5 * ddim(z, at) + 0.5 * ddim(z, at)",
        "Twice calls the denoiser 10 times in 5 steps, but declares 5; set `calls` to the number per step",
    ),
    "Flat": (
        "return ddim(z, at).mean(0, keepdim=True)",
        "Flat returns shape (1, 2); must be (2, 2)",
    ),
    "NaN": ("return ddim(z, at) / 0", "NaN returns numbers that are not finite"),
    "Typo": ("return ddim(z, at) * at.dt", "AttributeError: 'Step' object has no attribute 'dt'"),
    "Global": (
        "return ddim(z, at) + 0.1 * torch.randn_like(z)",
        "Global draws different samples with the same seed; draw noise with at.noise(z)",
    ),
    "Keeps": (
        "self.old = z = ddim(z, at) + 0.5 * getattr(self, 'old', 0); return z",
        "Keeps draws different samples with the same seed",
    ),
}


@pytest.mark.parametrize(("name", "words"), [*cases(STEPS), ("Noisy", ""), ("Most", "")])
def test_try_sampler_accepts_or_refuses_user_sampler(trusting, name, words):
    file = trusting("own_samplers", SAMPLERS + classes("Sampler", "step(self, z, at)", STEPS))
    sampler = getattr(import_module("own_samplers"), name)(steps=5)
    network = MLP((2,), width=8, blocks=1)
    parts = {"event": (2,), "schedule": Linear(-6, 6), "training_items": None, "device": CPU}
    denoiser = Denoiser(network, Output("epsilon"), VariancePreserving())
    model = SimpleNamespace(denoiser=denoiser, adapt_sampler=lambda one: one, **parts)

    def draw():
        with isolated_evaluation(denoiser):
            try_sampler(sampler, model)

    refused_if(draw, words and f"sampler: {words}", f"({file}:")
    assert not denoiser._forward_hooks


def test_log_refuses_names_logged_by_the_run_itself(monkeypatch):
    """A figure may not have two sources: Lightning would average them, and select by the mean.

    The order does not matter.
    """
    logged, problem = [], ": the run itself logs this name; choose another name"
    monkeypatch.setattr(
        LightningModule, "log", lambda self, name, *value, **how: logged.append(name)
    )
    model = LoggingModule()
    model.log_model_metrics({"val/bound": 1.0, "step": 2})
    model.log("step", 2)
    model.log("val/mine", 1.0)
    refused(lambda: model.log("val/bound", 2.0), f"log('val/bound'){problem}")
    refused(lambda: model.log_model_metrics({"val/mine": 2.0}), f"log('val/mine'){problem}")
    assert logged == ["val/bound", "step", "step", "val/mine"]
