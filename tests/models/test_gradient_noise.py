"""The gradient noise scale for a loss with known gradients, and for real models."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from tests.diffusion.oracles import generator, network
from tests.refusal import refused
from triptych.data.batch import Batch
from triptych.diffusion.loss import Elbo
from triptych.diffusion.objective import Objective
from triptych.diffusion.schedule import Cosine
from triptych.diffusion.times import Importance, Stratified, Uniform
from triptych.models.gradient_noise import GradientNoise
from triptych.networks.mlp import MLP

DIM, N = 2, 64
counts_directly = pytest.mark.filterwarnings("ignore:The ``compute`` method")


@counts_directly
@pytest.mark.parametrize("draws", [1, 4])
def test_gradient_noise_scale_matches_closed_form(draws):
    """For the loss |w - x|^2 / 2 with x ~ N(mu, diag(s^2)), a gradient is w - x.

    So B = sum s^2 / |w - mu|^2.
    """
    random = generator()
    away, std = torch.tensor([0.5, -1.0, 0.2]), torch.tensor([1.0, 2.0, 0.3])
    metric = GradientNoise(batch=8, draws=draws)
    for item in (away + std * torch.randn(20_000 // draws, 8, 3, generator=random)).mean(1):
        metric.add_group([item] * draws)  # all noise is the items' own
    wanted = (std.square().sum() / away.square().sum()).item()
    assert metric.compute() == pytest.approx(wanted, rel=0.05)


@counts_directly
@pytest.mark.parametrize(("scale", "share"), [(1000.0, 0.0), (3000.0, 0.1)])
def test_gradient_noise_scale_is_unbiased_with_repeated_draws(scale, share):
    """Synthetic gradients have a known B; items have a ``share`` of the trace, draws the rest.

    At the metric's own b and K, on the 297 items of the digits' test set, |G| = 1, so tr(Sigma) =
    B.
    """
    size, repeats, metric = 4000, 30, GradientNoise()
    groups, b, k = 297 // metric.batch, metric.batch, metric.draws
    mean, random = torch.full((size,), size**-0.5), generator()
    std = [math.sqrt(scale * part / b / size) for part in (share, 1 - share)]
    ratios = []
    for _ in range(repeats):
        metric.reset()
        for _ in range(groups):
            own = std[0] * torch.randn(1, size, generator=random)
            metric.add_group(mean + own + std[1] * torch.randn(k, size, generator=random))
        ratios.append(metric.compute())
    assert sum(ratios) / repeats == pytest.approx(scale, rel=0.02)


@counts_directly
def test_gradient_noise_scale_median_is_unbiased_for_few_weights():
    """To second order, E[1 / y] is 1 / E[y] times 1 plus the squared relative error of y."""
    size, scale, groups, repeats = 500, 1000.0, 18, 400
    metric, random = GradientNoise(draws=1), generator()
    std = math.sqrt(scale / metric.batch / size)
    ratios = []
    for _ in range(repeats):
        metric.reset()
        for gradient in size**-0.5 + std * torch.randn(groups, size, generator=random):
            metric.add_group([gradient])
        ratios.append(metric.compute() / scale)
    s = scale / metric.batch / groups
    v = (2 * groups / (groups - 1) * s**2 + 4 * s) / size
    ratio = torch.tensor(ratios)
    assert ratio.mean() - 1 == pytest.approx(v, abs=3.5 * math.sqrt(v / repeats))
    assert ratio.median() == pytest.approx(1.0, abs=3.5 * 1.26 * math.sqrt(v / repeats))


@counts_directly
def test_gradient_noise_scale_is_nan_for_zero_mean_gradient():
    metric = GradientNoise(draws=1)
    assert math.isnan(metric.compute())
    for gradient in (torch.ones(1), -torch.ones(1)):
        metric.add_group([gradient])
    assert math.isnan(metric.compute()), "the mean is zero"


def model(times, steps=None):
    torch.manual_seed(0)
    mlp = MLP((DIM,), width=16, blocks=1)
    return SimpleNamespace(
        denoiser=network(mlp, "epsilon"), schedule=Cosine(-7.0, 6.0), times=times, dims=DIM,
        objective=Objective("epsilon", Elbo(), steps), condition_of=lambda batch: None,
        networks=lambda: [mlp],
    )  # fmt: skip


@pytest.mark.parametrize("times", [Uniform(), Stratified(), Importance(objective_steps=10)])
def test_gradient_noise_leaves_weights_and_times_unchanged(times):
    of = model(times, 10 if times.learns else None)
    before = copy.deepcopy([of.denoiser.state_dict(), times.state_dict()])
    metric = GradientNoise(batch=8, draws=2)
    with torch.inference_mode():
        x = torch.randn(N + 3, DIM)
        metric.update(of, Batch(x, None, torch.arange(N + 3)))
    assert metric.sums[0] == N // 8, "what is left over is no group"
    assert all(p.grad is None for p in of.denoiser.parameters())
    for one, other in zip(before, [of.denoiser.state_dict(), times.state_dict()], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_gradient_noise_ignores_output_clip():
    sums = []
    for clip in (None, 0.01):
        of, metric = model(Uniform()), GradientNoise(batch=8, draws=2)
        output = of.denoiser.eval().output
        output.clip = clip
        torch.manual_seed(1)
        metric.update(of, Batch(torch.randn(N, DIM), None, torch.arange(N)))
        sums.append(metric.sums)
        assert not output.training, "as it was"
    assert sums[0].equal(sums[1]) and sums[0].isfinite().all()


def test_a_model_without_a_network_is_refused():
    of = model(Uniform())
    of.networks, of.of_latents = list, False
    refused(lambda: GradientNoise().check(of), "trains no network")
