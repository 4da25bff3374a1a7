"""Learned schedules: formulas, the gradient of each parameter, and the reduction of variance."""

import copy
import math

import pytest
import torch

from triptych.diffusion import learned_schedule
from triptych.diffusion.bound import Bound
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.loss import Elbo
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear

from .oracles import generator, refused, ring_mixture

VP = VariancePreserving()


def shaken(pinned: bool = True, hidden: int = 9) -> Monotone:
    """Return a network far from its initial values."""
    schedule, draws = Monotone(-10, 8, pinned, hidden), generator()
    with torch.no_grad():
        for p in (schedule.log_weight, schedule.log_rate, schedule.shift):
            p += torch.randn(p.shape, generator=draws)
    return schedule


def batch(n, seed):
    """Return x, t and eps of the ring."""
    draws = generator(seed)
    x, _ = ring_mixture().sample(n, draws)
    return x, torch.rand(n, generator=draws), torch.randn(n, 2, generator=draws)


SCHEDULES = [LearnedEndpoints(-10, 8), Monotone(-10, 8), shaken(), shaken(False)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4)])
def test_learned_schedule_slope_inverse_and_endpoints(schedule, shape):
    t = torch.rand(shape, generator=generator(1), dtype=torch.float64)
    double = copy.deepcopy(schedule).double()
    gamma, slope = torch.func.jvp(double.gamma, (t,), (torch.ones_like(t),))
    assert gamma.shape == shape and (slope > 0).all()
    assert torch.allclose(double.dgamma(t), slope, rtol=1e-9)
    assert torch.allclose(double.t_of(gamma), t, atol=1e-9)
    assert torch.allclose(schedule.gamma(torch.tensor([0.0, 1.0])), torch.tensor([-10.0, 8.0]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learned_schedule_compiles_as_full_graph(schedule):
    t = torch.rand(7)
    both = torch.compile(
        lambda t: (schedule.gamma(t), schedule.dgamma(t)), fullgraph=True, backend="eager"
    )
    with torch.inference_mode():
        gamma, slope = both(t)
    assert torch.allclose(gamma, schedule.gamma(t)) and torch.allclose(slope, schedule.dgamma(t))
    schedule.train()
    both(t)[0].sum().backward()
    schedule.zero_grad()


def test_variance_descent_gradients_of_interior_and_endpoints():
    schedule, oracle = shaken(pinned=False), Oracle(ring_mixture(), VP)
    drawn, objective = batch(200, 2), Objective("epsilon", Elbo())

    def gradients(loss):
        schedule.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in schedule.named_parameters()}

    nats = objective(oracle, schedule, *drawn).nats
    first = gradients(nats.mean())
    nats = objective(oracle, schedule, *drawn).nats
    second = gradients(nats.square().mean() / nats.mean().detach())
    with schedule.variance_descent() as tell:
        nats = objective(oracle, schedule, *drawn).nats
    tell(nats)
    ours = gradients(nats.mean())
    for name in ("low_shift", "top_shift"):
        assert torch.allclose(ours[name], first[name], rtol=1e-5)
    for name in ("log_weight", "log_rate", "shift"):
        assert torch.allclose(ours[name], second[name], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(ours[name], first[name], rtol=0.1)


@pytest.mark.parametrize("world", [2, 3])
def test_variance_descent_gradient_is_independent_of_world_size(monkeypatch, world):
    """The gradient of E[L^2] / E[L] over 60 items is the mean of the parts' gradients, as in
    DDP."""
    schedule, objective, oracle = shaken(), Objective("epsilon", Elbo()), Oracle(ring_mixture(), VP)
    drawn = batch(60, 3)

    def gradient(part: slice) -> torch.Tensor:
        schedule.zero_grad()
        with schedule.variance_descent() as tell:
            nats = objective(oracle, schedule, *(a[part] for a in drawn)).nats
        tell(nats)
        nats.mean().backward()
        return torch.cat([p.grad.flatten() for p in schedule.parameters() if p.grad is not None])

    whole = gradient(slice(None))
    parts = [slice(r * 60 // world, (r + 1) * 60 // world) for r in range(world)]
    apart = torch.stack([gradient(part) for part in parts]).mean(0)
    with torch.no_grad():
        nats = objective(oracle, schedule, *drawn).nats

    # This stands for gathering the losses of all processes.
    def whole_batch(value):
        assert 0 < value.sum() < nats.sum() and len(value) == 60 // world
        return nats

    monkeypatch.setattr(learned_schedule, "whole_batch", whole_batch)
    together = torch.stack([gradient(part) for part in parts]).mean(0)
    assert (together - whole).norm() < 1e-5 * whole.norm()
    assert (apart - whole).norm() > 1e-2 * whole.norm(), (
        "the parts' own means would have passed, too"
    )


def test_variance_descent_requires_losses_before_backward():
    schedule = Monotone(-10, 8)
    with schedule.variance_descent():
        gamma = schedule.gamma(torch.rand(3))
    with pytest.raises(AssertionError):
        gamma.sum().backward()


def estimate(schedule, n: int = 200_000) -> tuple[float, float, float]:
    """Return mean, its standard error and per-draw variance of the ring's diffusion term at
    independent times."""
    with torch.no_grad():
        nats = (
            Bound(schedule, None).diffusion(Oracle(ring_mixture(), VP), *batch(n, 5)).nats.double()
        )
    return nats.mean().item(), nats.std().item() / math.sqrt(n), nats.var().item()


def test_monotone_schedule_reduces_variance_and_keeps_bound():
    oracle, objective = Oracle(ring_mixture(), VP), Objective("epsilon", Elbo())
    schedule = Monotone(-10, 8, pinned=True)
    parameters = [p for p in schedule.parameters() if p.requires_grad]
    assert len(parameters) == 3  # without the endpoints
    steps = 150
    optimiser = torch.optim.Adam(parameters, lr=6e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        with schedule.variance_descent() as tell:
            nats = objective(oracle, schedule, *batch(512, 100 + step)).nats
        tell(nats)
        optimiser.zero_grad()
        nats.mean().backward()
        optimiser.step()
        decay.step()
    mean, stderr, variance = estimate(schedule)
    before, before_stderr, straight = estimate(Linear(-10, 8))
    assert straight == pytest.approx(187, rel=0.03)
    assert variance <= 0.6 * straight  # the optimum is 88 / 187 = .47
    assert abs(mean - 8.288) < 3 * stderr and abs(mean - before) < 3 * math.hypot(
        stderr, before_stderr
    )
    assert torch.equal(schedule.gamma(torch.tensor([0.0, 1.0])), torch.tensor([-10.0, 8.0]))


@pytest.mark.parametrize("kind", [LearnedEndpoints, Monotone])
def test_endpoints_out_of_order_are_refused(kind):
    refused(lambda: kind(3, 3), "gamma_min < gamma_max")
