"""The classes of ``examples/mylab`` do what their docstrings say, because people copy them."""

from types import SimpleNamespace

import pytest
import torch

from triptych.config.check import CONFIGS
from triptych.data.batch import Batch
from triptych.diffusion.loss import Level
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS.parent / "examples"))


@pytest.mark.parametrize("ends", [(-6.0, 6.0), (-8.0, 3.0), (1.0, 5.0)])
def test_laplace_schedule_follows_laplace_distribution(ends):
    from mylab.laplace import Laplace

    schedule = Laplace(*ends, centre=0.5, spread=1.5)
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    gamma = schedule.gamma(t)
    assert gamma[[0, -1]].tolist() == pytest.approx(list(ends), abs=1e-9)
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    torch.testing.assert_close(schedule.dgamma(t), slope)
    torch.testing.assert_close(schedule.t_of(gamma), t)
    of = torch.distributions.Laplace(torch.tensor(0.5, dtype=torch.float64), 1.5)
    low, high = of.cdf(gamma[0]), of.cdf(gamma[-1])
    torch.testing.assert_close((of.cdf(gamma) - low) / (high - low), t)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_blend_output_converts_to_x0_and_epsilon(share):
    from mylab.blend import Blend

    x, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    alpha, sigma = VariancePreserving().alpha_sigma(
        torch.linspace(-6, 6, 4, dtype=torch.float64)[:, None]
    )
    z = alpha * x + sigma * eps
    guess = Blend(share)((1 - share) * eps - share * x, z, alpha, sigma)
    torch.testing.assert_close(guess.x0, x)
    torch.testing.assert_close(guess.epsilon, eps)
    if share == 0.5:
        torch.testing.assert_close(2 * guess.value, guess.view("velocity"))


def test_window_loss_weight_peaks_at_centre():
    from mylab.window import Window

    gamma = torch.tensor([1.0, 3.0, -1.0])
    at = Level(VariancePreserving(), gamma, torch.ones(3), torch.ones(3), "x0")
    w = Window(centre=1.0, width=2.0).weight(at)
    torch.testing.assert_close(w, torch.tensor([1.0, 0.60653, 0.60653]))  # e^{-1/2}


def test_midpoint_sampler_converges_at_second_order():
    """A Gaussian's flow scales z with its deviation; twice the steps quarter the error."""
    from mylab.midpoint import Midpoint

    deviation = 0.5
    truth = GaussianMixture([1.0], [[0.0]], torch.tensor([[[deviation**2]]]))
    denoiser, schedule = Oracle(truth, VariancePreserving()), Linear(-6.0, 4.0)
    z, errors = torch.ones(1, 1, dtype=torch.float64), []
    alpha, sigma = denoiser.process.alpha_sigma(torch.tensor([4.0, -6.0], dtype=torch.float64))
    wide, narrow = torch.sqrt(alpha**2 * deviation**2 + sigma**2)
    for steps in (40, 80):
        gammas = Midpoint(steps).gammas(schedule, dtype=torch.float64)
        *_, reached = Midpoint(steps).path(denoiser, gammas, z)
        errors.append((reached / z - narrow / wide).abs().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_psnr_metric_is_in_decibels():
    """An estimate that is off by 0.2, in pictures of range 2, has 10 log10(4 / 0.04) = 20 dB."""
    from mylab.psnr import Psnr

    x = torch.randn(3, 1, 4, 4)
    process = VariancePreserving()

    def denoiser(z, gamma, condition):
        alpha, sigma = process.alpha_sigma(gamma.view(-1, 1, 1, 1))
        return Prediction("x0", x + 0.2, z, alpha, sigma)

    denoiser.process = process
    model = SimpleNamespace(denoiser=denoiser, shape=(1, 4, 4), seed=1, conditional=False)
    metric = Psnr(gamma=1.0)
    metric.update(model, Batch(x, None, torch.arange(3)))
    found = metric.compute()
    assert found["mean"] == pytest.approx(20, abs=1e-3) and found["n"] == 3


def test_bars_data_labels_match_bar_orientation():
    from mylab.bars import Bars

    data = Bars(thick=3, grain=0.0)
    data.setup()
    for split in data.splits.values():
        bright = split.values.squeeze(1) == 3
        assert set(split.values.unique().tolist()) == {0, 3} and (bright.sum((1, 2)) == 3 * 8).all()
        assert bright.all(2).sum(1).equal(torch.where(split.labels == 0, 3, 0))  # whole rows
        assert bright.all(1).sum(1).equal(torch.where(split.labels == 1, 3, 0))  # whole columns


def test_brightness_metric_counts_grey_levels():
    """0.1 of a range of 2 is 255 / 20 = 12.75 grey levels, in either direction."""
    from mylab.brightness import Brightness

    from triptych.models.metric import Samples

    true = torch.rand(5, 1, 4, 4) - 0.5
    for shift in (0.1, -0.1):
        assert Brightness().figure(Samples(true + shift, true)) == pytest.approx(12.75, abs=1e-4)
