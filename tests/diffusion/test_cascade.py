"""Stages in a row: the composition of exact conditionals is the exact joint distribution."""

import pytest
import torch

from triptych.diffusion.cascade import CascadeSampler, Stage
from triptych.diffusion.condition import Condition
from triptych.diffusion.guidance import ClassifierFree
from triptych.diffusion.measures import noise_floor, sliced_wasserstein
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DPMSolver
from triptych.diffusion.schedule import Linear

from .oracles import generator, given, refused

N = 2000


def parts(name="low"):
    """(prior stage of v, stage of x given v, the truth)."""
    truth = given(name)
    spread = truth.v_std**2 * torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    prior = Oracle(GaussianMixture(truth.weights, truth.centres, spread), VariancePreserving())
    schedule, sampler = Linear(-9.0, 6.0), DPMSolver(50)
    return Stage(name, prior, schedule, sampler, (3,)), Stage("high", truth, schedule, sampler, (2,)), truth


def test_low_then_high_given_low_is_the_joint():
    low, high, truth = parts()
    floor = noise_floor(sliced_wasserstein, lambda i: truth.joint().sample(N, generator(50 + i))[0], pairs=9)
    drawn = CascadeSampler([low, high])(N, generator=generator(0))
    assert list(drawn) == ["low", "high"] and drawn["high"].shape == (N, 2)
    exact = truth.joint().sample(N, generator(9))[0]
    assert sliced_wasserstein(torch.cat([*drawn.values()], 1), exact) < 1.5 * floor.high
    apart = torch.cat([drawn["low"].flip(0), drawn["high"]], 1)
    assert sliced_wasserstein(apart, exact) > 3 * floor.high, (
        "each stage alone is right, together they are not"
    )


def test_the_first_stage_is_asked_what_the_cascade_is():
    low, high, truth = parts()
    asked = Condition(label=torch.full((N,), 2))
    drawn = CascadeSampler([low, high])(N, generator=generator(0), condition=asked)["low"]
    alone = GaussianMixture(
        torch.ones(1).double(), truth.centres[2:], truth.v_std**2 * torch.eye(3).double()[None]
    )
    floor = noise_floor(sliced_wasserstein, lambda i: alone.sample(N, generator(50 + i))[0], pairs=9)
    assert sliced_wasserstein(drawn, alone.sample(N, generator(9))[0]) < 1.5 * floor.high


def test_what_a_stage_draws_may_be_changed_before_others_see_it():
    low, high, _ = parts()
    low.change = torch.zeros_like
    drawn = CascadeSampler([low, high])(8, generator=generator(0))
    assert not drawn["low"].any()
    again = high.sampler(
        high.denoiser, high.schedule, (8, 2),
        generator=after(8), condition=Condition(low=torch.zeros(8, 3)),
    )  # fmt: skip
    assert torch.equal(drawn["high"], again)


def after(n):
    """The generator as the first stage leaves it."""
    used = generator(0)
    torch.randn(n, 3, generator=used)
    return used


def test_guidance_by_one_part_tells_the_others_to_both():
    truth = given("low")
    z, gamma = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.5).double()
    told = Condition(low=torch.randn(5, 3), label=torch.arange(5))
    kept = ClassifierFree(truth, 3.0, parts=["label"])(z, gamma, told)
    torch.testing.assert_close(kept.score, truth(z, gamma, told).score)  # which hangs on no label
    pushed = ClassifierFree(truth, 3.0, parts=["low", "label"])(z, gamma, told)
    without, own = truth(z, gamma).score, truth(z, gamma, told).score
    torch.testing.assert_close(pushed.score, without + 3 * (own - without))


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_refuses_no_stages_and_names_that_repeat(names):
    low, _, _ = parts()
    refused(
        lambda: CascadeSampler([Stage(name, *list(vars(low).values())[1:]) for name in names]),
        f"stages {names}",
    )
