"""Metrics of a model under noise, compared with closed forms for a Gaussian."""

import math
from types import SimpleNamespace

import pytest
import torch

from triptych.data.batch import Batch
from triptych.diffusion.loss import EDM, Elbo, MinSNR, MuTilde, Sigmoid, Squared, Vlb
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Cosine
from triptych.errors import UserError
from triptych.models.noisy import Distortion, NoisyBounds, WeightedLoss

DIM, STD, N = 2, 0.5, 2000
PROCESS, SCHEDULE = VariancePreserving(), Cosine(-7.0, 6.0)
X = STD * torch.randn(N, DIM, generator=torch.Generator().manual_seed(1))


def model(loss, levels=None, steps=None):
    """Return the exact denoiser of N(0, STD^2 I), as a model with this ``loss``."""
    truth = GaussianMixture([1.0], [[0.0] * DIM], [(STD**2 * torch.eye(DIM)).tolist()])
    return SimpleNamespace(
        denoiser=Oracle(truth, PROCESS), schedule=SCHEDULE, objective=Objective("x0", loss, steps),
        of_latents=False, dims=DIM, levels=levels, condition_of=lambda batch: None,
    )  # fmt: skip


def taken(metric, of):
    torch.manual_seed(0)
    metric.update(of, Batch(X, None, torch.arange(N)))
    return metric.compute()


def published(loss):
    """Compute 1/2 int w(gamma) E|eps - eps_hat|^2 dgamma per dimension on a fine grid.

    Var(eps | z) is known.
    """
    t = torch.linspace(0, 1, 100_001).double()
    gamma = SCHEDULE.gamma(t)
    alpha, sigma = PROCESS.alpha_sigma(gamma)
    weight = Objective("x0", loss).effective_weight(PROCESS, SCHEDULE, gamma)
    mse = (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    return 0.5 * torch.trapezoid(weight * mse, gamma).item()


@pytest.mark.parametrize(
    "loss", [Elbo(), Sigmoid(), EDM(monotonic=True), Squared("v"), EDM(), MinSNR()]
)
@pytest.mark.parametrize("metric", [WeightedLoss, NoisyBounds])
def test_weighted_loss_and_noisy_bounds_match_weighted_integral(metric, loss):
    """Kingma & Gao 2023, theorem 1; the last two weights are not monotone."""
    found, wanted = taken(metric(draws=16), model(loss)), published(loss)
    assert found["n"] == N and found["stderr"] < 0.07 * wanted
    assert abs(found["mean"] - wanted) < 4 * found["stderr"]


def test_noisy_metrics_refuse_mu_tilde_loss():
    for metric in (WeightedLoss, NoisyBounds):
        metric.check(model(Vlb(), steps=10))
        with pytest.raises(UserError, match="objective.loss=MuTilde: .*objective/loss=elbo"):
            metric.check(model(MuTilde(), steps=10))


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_distortion_is_rms_error_in_levels(t):
    """E|x - E[x | z]|^2 is std^2 sigma^2 / (alpha^2 std^2 + sigma^2) per dimension.

    17 levels are .125 apart.
    """
    alpha, sigma = (a.item() for a in PROCESS.alpha_sigma(SCHEDULE.gamma(torch.tensor(t).double())))
    root = math.sqrt((STD * sigma) ** 2 / ((alpha * STD) ** 2 + sigma**2))
    for levels, scale in ((None, 1.0), (17, 8.0)):
        found = taken(Distortion(t), model(Elbo(), levels))
        assert found["stderr"] < 0.03 * scale * root
        assert abs(found["mean"] - scale * root) < 4 * found["stderr"]
