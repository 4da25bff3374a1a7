"""Of several samples, keep the one nearest to a vector of the condition (DALL-E 2's prior)."""

import pytest
import torch

from triptych.diffusion.condition import Condition
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM, Chosen
from triptych.diffusion.schedule import Linear

from .oracles import generator, given

TRUTH = Oracle(given().marginals()[1], VariancePreserving())
SCHEDULE, N = Linear(-9.0, 6.0), 40


def told():
    return Condition(text_embedding=torch.randn(N, 2, generator=generator()))


def draw(sampler, condition):
    return sampler(TRUTH, SCHEDULE, (N, 2), generator=generator(3), condition=condition)


def dot(x, condition):
    return (x * condition.parts["text_embedding"].value).sum(1)


@pytest.mark.parametrize("draws", [2, 5])
def test_chosen_sampler_returns_best_of_n_draws(draws):
    condition, noise, one = told(), generator(3), DDIM(6, eta=1.0)
    every = torch.stack([one(TRUTH, SCHEDULE, (N, 2), generator=noise) for _ in range(draws)])
    found = draw(Chosen(6, draws, eta=1.0), condition)
    scores = torch.stack([dot(x, condition) for x in every])
    torch.testing.assert_close(dot(found, condition), scores.max(0).values)
    assert (found == every).all(2).any(0).all(), "each is one of the draws, whole"


def test_chosen_sampler_equals_ddim_for_one_draw_or_no_target():
    expected = draw(DDIM(6), None)
    assert torch.equal(draw(Chosen(6, 1), told()), expected)
    assert torch.equal(draw(Chosen(6, 2), None), expected)
    assert torch.equal(draw(Chosen(6, 2), Condition(other=torch.zeros(N, 3))), expected)
    assert Chosen(6, 2).evaluations == 12
