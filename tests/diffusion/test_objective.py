"""Objectives: one loss in every space, and what it weighs."""

import pytest
import torch

from triptych.diffusion.bound import Bound
from triptych.diffusion.loss import Elbo, MinSNR, Sigmoid, Simple
from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import SPACES
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.schedule import Cosine

from .oracles import SCHEDULES, Wrong, network, row

every_space = pytest.mark.parametrize("space", SPACES)
every_schedule = pytest.mark.parametrize("kind", SCHEDULES.values(), ids=SCHEDULES)
both = pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()], ids=["vp", "ve"])


def batch():
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(32, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, (torch.arange(32, dtype=torch.float64) + 0.5) / 32, eps


@every_space
@both
def test_simple_is_the_plain_squared_error_of_the_networks_output(space, process):
    x, t, eps = batch()
    schedule, denoiser = Cosine(-6.0, 5.0), network(Wrong(), space, process)
    loss = Objective(space, Simple())(denoiser, schedule, x, t, eps)
    gamma = schedule.gamma(t)
    alpha, sigma = (a.view(-1, 1, 1) for a in process.alpha_sigma(gamma))
    z = alpha * x + sigma * eps
    c, d = row(space, alpha, sigma)
    target = c * x + d * eps
    torch.testing.assert_close(loss.nats, (Wrong()(z, gamma, None) - target).square().sum((1, 2)))
    torch.testing.assert_close(loss.gamma, gamma)
    guess = denoiser(z, gamma)
    torch.testing.assert_close(
        loss.squared_error, (guess.epsilon - eps).square().sum((1, 2)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("weighting", [Elbo(), Simple(), MinSNR(), Sigmoid()])
@every_schedule
def test_effective_weight_is_the_loss_relative_to_the_bound(weighting, kind):
    x, t, eps = batch()
    schedule, denoiser = kind(-6.0, 5.0), network(Wrong(), "x0")
    objective = Objective("x0", weighting)
    ratio = (
        objective(denoiser, schedule, x, t, eps).nats
        / Bound(schedule, None).diffusion(denoiser, x, t, eps).nats
    )
    weight = objective.effective_weight(denoiser.process, schedule, schedule.gamma(t))
    torch.testing.assert_close(ratio, weight, rtol=1e-6, atol=0)


def test_weights_are_constants_to_the_gradient():
    x, t, eps = batch()
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Scaled(Wrong):
        def forward(self, z, gamma, condition):
            return gain * super().forward(z, gamma, condition)

    for weighting in (Elbo(), Simple(), MinSNR(), Sigmoid()):
        objective = Objective("v", weighting)
        schedule, process = SCHEDULES["linear"](-6.0, 5.0), VariancePreserving()
        assert not objective(network(Scaled(), "v"), schedule, x, t, eps).gamma.requires_grad
        loss = objective(network(Scaled(), "v"), schedule, x, t, eps).nats
        (slope,) = torch.autograd.grad(loss.sum(), gain)
        weight = objective.effective_weight(process, schedule, schedule.gamma(t))
        fixed = 0.5 * weight * schedule.dgamma(t)
        squared = objective(network(Scaled(), "v"), schedule, x, t, eps).squared_error
        (expected,) = torch.autograd.grad((fixed * squared).sum(), gain)
        torch.testing.assert_close(slope, expected)
