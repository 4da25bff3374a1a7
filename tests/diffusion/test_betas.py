"""DDPM's discrete schedule against diffusers' ``DDPMScheduler`` and formulas of Ho et al. 2020."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy.stats import norm

from triptych.diffusion.betas import Betas
from triptych.diffusion.decoder import DiscretisedGaussian
from triptych.diffusion.reverse_variance import step_of
from triptych.diffusion.sampler import DDIM, Ancestral

from .oracles import generator, network, normal, refused

WIDE = {"beta_start": 0.05, "beta_end": 0.3, "num_train_timesteps": 10}
TRAINED = [0.01, 0.03, 0.02, 0.3, 0.7]
KINDS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "linear", "beta_start": 1e-5, "beta_end": 0.3, "num_train_timesteps": 50},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000},
    {"trained_betas": TRAINED, "num_train_timesteps": 5},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_betas_match_diffusers_alphas_cumprod(kind):
    """At each of the T times alphas_cumprod agrees to 1e-7, and the timestep is the position in the
    table."""
    theirs, ours = DDPMScheduler(**kind).alphas_cumprod.double(), Betas(**kind)
    t = torch.linspace(0, 1, len(theirs))
    for dtype in (torch.float32, torch.float64):
        gamma = ours.gamma(t.to(dtype))
        assert gamma.dtype == dtype
        kept = torch.sigmoid(-gamma.double())
        assert (kept - theirs).abs().max() <= 1e-7
        assert (torch.sigmoid(gamma.double()) / (1 - theirs) - 1).abs().max() <= 2e-6
        assert ours.timestep(gamma).equal(torch.arange(len(theirs)).to(dtype))
    torch.testing.assert_close(ours.t_of(gamma).float(), t)


def test_betas_interpolate_gamma_linearly_between_timesteps():
    schedule = Betas(trained_betas=TRAINED, num_train_timesteps=5)
    t, k = (
        torch.tensor([0.05, 0.3, 0.6, 0.99, 1.0]).double(),
        torch.tensor([0, 1, 2, 3, 3]).double(),
    )
    low, high = schedule.gamma(k / 4), schedule.gamma((k + 1) / 4)
    torch.testing.assert_close(schedule.dgamma(t), (high - low) * 4)
    torch.testing.assert_close(schedule.gamma(t), low + (high - low) * (4 * t - k))
    torch.testing.assert_close(schedule.t_of(schedule.gamma(t)), t)


def test_betas_refuses_wrong_number_or_degenerate_betas():
    refused(lambda: Betas(trained_betas=TRAINED), "5 numbers; must be 1000, as schedule")
    for betas in ([0.1, 1e-9, 0.1], [0.9999] * 40):
        kind = {"trained_betas": betas, "num_train_timesteps": len(betas)}
        refused(lambda kind=kind: Betas(**kind), "alphas_cumprod must be below 1")


class Network(torch.nn.Module):
    def forward(self, z, gamma, condition=None):
        return 0.3 * z + 0.1 * torch.tanh(gamma).view(-1, 1, 1, 1)


def test_discretised_gaussian_with_betas_matches_ddpm_decoder():
    """Eq. 13: a Gaussian around the prediction at x_1 with the variance beta_2 (1 - abar_1) / (1 -
    abar_2)."""
    schedule, x = Betas(**WIDE), (normal(4, 1, 3, 3).float() * 2).clamp(-1, 1)
    x = (x * 4).round() / 4  # nine levels
    beta = DDPMScheduler(**WIDE).betas.double().numpy()
    kept = np.cumprod(1 - beta)
    std = np.sqrt(beta[1] * (1 - kept[0]) / (1 - kept[1]))
    denoiser, gamma = network(Network(), "epsilon"), schedule.gamma(torch.tensor(0.0))
    eps = normal(4, 1, 3, 3, seed=1).float()
    ours = DiscretisedGaussian(9, schedule).draw(denoiser, x, eps, gamma)
    z = np.sqrt(kept[0]) * x.double().numpy() + np.sqrt(1 - kept[0]) * eps.double().numpy()
    noise = 0.3 * z + 0.1 * np.tanh(np.log((1 - kept[0]) / kept[0]))
    mean, truth = (z - np.sqrt(1 - kept[0]) * noise) / np.sqrt(kept[0]), x.double().numpy()
    upper = np.where(truth > 0.99, np.inf, truth + 1 / 8)
    lower = np.where(truth < -0.99, -np.inf, truth - 1 / 8)
    theirs = -np.log(norm.cdf(upper, mean, std) - norm.cdf(lower, mean, std)).sum((1, 2, 3))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-4)


def test_ancestral_gammas_at_t_steps_match_bound_at_t_minus_one():
    schedule = Betas(num_train_timesteps=20)
    k = torch.arange(20).double()
    upper, lower = step_of(schedule, (k[1:] - 0.5) / 19, 19)
    gammas = Ancestral(20, grid="time").gammas(schedule, dtype=torch.float64)
    torch.testing.assert_close(gammas, torch.cat([upper.flip(0), lower[:1]]), rtol=0, atol=0)


@pytest.mark.parametrize(("levels", "steps"), [(20, 1), (20, 3), (20, 16), (1000, 30), (1000, 999)])
def test_time_grid_matches_diffusers_trailing_timesteps(levels, steps):
    schedule = Betas(num_train_timesteps=levels)
    peer = DDIMScheduler(num_train_timesteps=levels, timestep_spacing="trailing")
    peer.set_timesteps(steps)
    gammas = DDIM(steps, grid="time").gammas(schedule)
    assert schedule.timestep(gammas).tolist() == peer.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 4, 10, 20])
def test_ddim_samples_match_diffusers_with_trailing_timesteps(steps):
    """The same noise leads to the same data. The prediction at the last level is one of the steps,
    like diffusers' step to alpha = 1."""
    schedule, denoiser = Betas(beta_end=0.3, num_train_timesteps=20), network(Network(), "v")
    ours = DDIM(steps, grid="time")(denoiser, schedule, (5, 1, 2, 2), generator=generator(1))
    kind = {"num_train_timesteps": 20, "beta_end": 0.3, "prediction_type": "v_prediction"}
    peer = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **kind)
    peer.set_timesteps(steps)
    z = torch.randn(5, 1, 2, 2, generator=generator(1))
    gamma = torch.log((1 - peer.alphas_cumprod) / peer.alphas_cumprod)
    for t in peer.timesteps:
        z = peer.step(Network()(z, gamma[t].expand(5)), t, z).prev_sample
    torch.testing.assert_close(ours, z, rtol=0, atol=1e-4)
