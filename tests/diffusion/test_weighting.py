"""Weightings: each against the loss that the paper writes down."""

import math

import pytest
import torch

from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import SPACES, error_scale
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Cosine, Linear
from triptych.diffusion.weighting import Elbo, MinSNR, Sigmoid, Simple

from .oracles import SCHEDULES, VarianceExploding, refused

GAMMA = torch.linspace(-9.5, 7.5, 100, dtype=torch.float64)
SNR = torch.exp(-GAMMA)
DGAMMA = torch.linspace(30, 2, 100, dtype=torch.float64)


def own(space):
    return error_scale(space, *VariancePreserving().alpha_sigma(GAMMA)).square()


def loss_weight(weighting, space):
    """What multiplies the squared error of the space itself: loss = 1/2 w gamma' |eps error|^2."""
    return 0.5 * weighting.weight(GAMMA, DGAMMA, own(space)) * DGAMMA / own(space)


@pytest.mark.parametrize("space", SPACES)
def test_simple_is_plain_mse_in_every_space(space):
    torch.testing.assert_close(loss_weight(Simple(), space), torch.ones_like(GAMMA))


@pytest.mark.parametrize("cap", [5.0, 1.0])
def test_min_snr_is_its_three_published_forms(cap):
    """min(SNR, c) on x0, min(SNR, c) / SNR on epsilon, min(SNR, c) / (SNR + 1) on v (Hang et al. 2023)."""
    capped = torch.minimum(SNR, torch.tensor(cap).double())
    torch.testing.assert_close(loss_weight(MinSNR(cap), "x0"), capped)
    torch.testing.assert_close(loss_weight(MinSNR(cap), "epsilon"), capped / SNR)
    torch.testing.assert_close(loss_weight(MinSNR(cap), "v"), capped / (SNR + 1))


@pytest.mark.parametrize("space", SPACES)
def test_elbo_is_one_and_sigmoid_falls_with_snr_whatever_the_space(space):
    assert (Elbo().weight(GAMMA, DGAMMA, own(space)) == 1).all()
    for bias in (2.0, -1.5):
        weight = Sigmoid(bias).weight(GAMMA, DGAMMA, own(space))
        torch.testing.assert_close(weight, 1 / (1 + torch.exp(SNR.log() - bias)))  # sigmoid(b - log SNR)


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()])
def test_elbo_in_x0_is_half_the_fall_of_snr(process):
    """The bound's own x0 form (tutorial eq. 99, T -> inf): -1/2 SNR'(t) |x - x_hat|^2, SNR' = -SNR gamma'."""
    scale = error_scale("x0", *process.alpha_sigma(GAMMA)).square()
    torch.testing.assert_close(0.5 * DGAMMA / scale, 0.5 * DGAMMA * SNR)


def test_effective_weight_is_the_schedules_only_where_the_loss_is():
    """Kingma & Gao 2023, table 1: cosine times make epsilon-MSE sech(l / 2) and v-MSE e^{-l / 2}."""
    process, cosine, linear = VariancePreserving(), Cosine(-10.0, 8.0), Linear(-10.0, 8.0)
    start, stop = (2 / math.pi * math.atan(math.exp(g / 2)) for g in (-10.0, 8.0))
    speed = math.pi * (stop - start)
    log_snr = -GAMMA

    def effective(space, weighting, schedule):
        return Objective(space, weighting).effective_weight(process, schedule, GAMMA)

    torch.testing.assert_close(effective("epsilon", Simple(), cosine), 1 / (torch.cosh(log_snr / 2) * speed))
    torch.testing.assert_close(effective("v", Simple(), cosine), 2 * torch.exp(-log_snr / 2) / speed)
    torch.testing.assert_close(effective("epsilon", Simple(), linear), torch.full_like(GAMMA, 2 / 18))
    torch.testing.assert_close(effective("x0", Simple(), linear), torch.exp(GAMMA) * 2 / 18)
    torch.testing.assert_close(effective("score", Simple(), linear), (1 + 1 / torch.exp(GAMMA)) * 2 / 18)
    torch.testing.assert_close(effective("x0", MinSNR(5.0), linear), torch.clamp(5 / SNR, max=1) * 2 / 18)
    for kind in SCHEDULES.values():  # these two belong to no schedule
        assert (effective("v", Elbo(), kind(-10.0, 8.0)) == 1).all()
        torch.testing.assert_close(
            effective("v", Sigmoid(1.0), kind(-10.0, 8.0)), torch.sigmoid(1 - log_snr), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_refuses_caps(cap):
    refused(lambda: MinSNR(cap), "objective.weighting.cap=")
