"""What depends on a batch's mean, on processes that each hold a part of the batch."""

import pytest
import torch

from tests.diffusion.test_learned_schedule import VP, ring, shaken
from triptych.diffusion import batch_mean as module
from triptych.diffusion.batch_mean import batch_mean
from triptych.diffusion.loss import Elbo
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.objective import Objective


@pytest.mark.parametrize("world", [2, 3])
def test_the_interior_s_gradient_on_parts_is_that_of_the_whole(monkeypatch, world):
    """d E[L^2] / E[L] of 60 items: the mean of the parts' gradients, as DDP takes it."""
    schedule, objective, oracle = shaken(), Objective("epsilon", Elbo()), Oracle(ring(), VP)
    generator = torch.Generator().manual_seed(3)
    x, _ = ring().sample(60, generator)
    t, eps = torch.rand(60, generator=generator), torch.randn(60, 2, generator=generator)

    def gradient(part: slice) -> torch.Tensor:
        schedule.zero_grad()
        with schedule.variance_descent() as tell:
            nats = objective(oracle, schedule, x[part], t[part], eps[part]).nats
        tell(nats)
        nats.mean().backward()
        return torch.cat([p.grad.flatten() for p in schedule.parameters() if p.grad is not None])

    whole = gradient(slice(None))
    parts = [slice(r * 60 // world, (r + 1) * 60 // world) for r in range(world)]
    apart = torch.stack([gradient(part) for part in parts]).mean(0)
    with torch.no_grad():
        nats = objective(oracle, schedule, x, t, eps).nats

    def all_reduce(sums):  # this process's and what the others would bring: in all, the batch's
        assert 0 < sums[0] < nats.sum() and sums[1] == 60 // world
        sums.copy_(torch.stack([nats.sum(), torch.tensor(60.0)]))

    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "all_reduce", all_reduce)
    together = torch.stack([gradient(part) for part in parts]).mean(0)
    assert (together - whole).norm() < 1e-5 * whole.norm()
    assert (apart - whole).norm() > 1e-2 * whole.norm(), "the parts' own means would have passed, too"


def test_without_processes_it_is_the_mean_and_has_no_gradient():
    value = torch.randn(7, requires_grad=True)
    assert torch.equal(batch_mean(value), value.mean()) and not batch_mean(value).requires_grad
