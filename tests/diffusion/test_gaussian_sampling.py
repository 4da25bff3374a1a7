"""Samplers on one Gaussian with an exact, affine denoiser: each step has a closed form.

Mean and covariance of each dimension of N(mean, diag(variance)) follow a recursion of two numbers,
written here from the formulas of the publications alone. The samples are compared with it.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from triptych.config.build import build
from triptych.config.check import CONFIGS
from triptych.diffusion.betas import Betas
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.reverse_variance import Beta, BetaTilde, Learned, Optimal
from triptych.diffusion.sampler import (
    DDIM,
    EDM,
    Ancestral,
    AnnealedLangevin,
    Langevin,
    PredictorCorrector,
    Step,
)
from triptych.diffusion.sampler.langevin import langevin
from triptych.diffusion.schedule import Linear

from .oracles import generator, network, normal, oracle, refused

PROCESSES = {"vp": VariancePreserving(), "ve": VarianceExploding()}
MEAN, VARIANCE = np.array([0.6, -0.3]), np.array([0.5, 0.02])
WIDE = Linear(-10.0, 8.0)
VARIANCES = {"beta_tilde": BetaTilde, "beta": Beta, "optimal": Optimal, "learned": Learned}
both = pytest.mark.parametrize("process", PROCESSES)
variances = pytest.mark.parametrize("variance", VARIANCES)


def parts():
    return [1.0], MEAN[None], np.diag(VARIANCE)[None]


def scales(process, gamma):
    """Return alpha and sigma at gamma, from their definitions."""
    if process == "ve":
        return 1.0, math.exp(gamma / 2)
    return math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))


def reverse_variance(name, process, gamma_t, gamma_s):
    """Return V (2,) of a step: beta tilde, beta (Ho et al. 2020, sec. 3.2), or the covariance of
    z_s given z_t.

    The covariance is beta tilde + coefficient^2 Var(x | z_t). The best isotropic V is its mean over
    dimensions (Bao et al. 2022, theorem 1); a V for each dimension can equal it.
    """
    (a_t, s_t), (a_s, s_s) = scales(process, gamma_t), scales(process, gamma_s)
    forward = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    tilde = forward * s_s**2 / s_t**2
    if name == "beta_tilde":
        return np.full(2, tilde)
    if name == "beta":
        return np.full(2, forward)
    of_x = VARIANCE * s_t**2 / (a_t**2 * VARIANCE + s_t**2)
    exact = tilde + (a_s * forward / s_t**2) ** 2 * of_x
    return exact if name == "learned" else np.full(2, exact.mean())


def recursion(process, gammas, variance, corrector=None):
    """Return (mean, variance) (2,) of z_0 / alpha_0 after ancestral steps down ``gammas`` from the
    prior.

    ``corrector`` (inner, snr): after each step, Langevin's x + e score + sqrt(2 e) noise with e = 2
    snr^2 sigma^2.
    """
    alpha, sigma = scales(process, gammas[0])
    mean, spread = np.zeros(2), np.full(2, 1.0 if process == "vp" else sigma**2)
    for gamma_t, gamma_s in itertools.pairwise(gammas):
        (a_t, s_t), (a_s, s_s) = scales(process, gamma_t), scales(process, gamma_s)
        forward = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        # The mean of q(z_s | z_t, x) is (a_t / a_s) s_s^2 / s_t^2 z + a_s forward / s_t^2 x, with x
        # = E[x | z].
        gain = a_t * VARIANCE / (a_t**2 * VARIANCE + s_t**2)
        of_z, of_x = a_t / a_s * s_s**2 / s_t**2, a_s * forward / s_t**2
        slope = of_z + of_x * gain
        mean = slope * mean + of_x * (1 - gain * a_t) * MEAN
        spread = slope**2 * spread + reverse_variance(variance, process, gamma_t, gamma_s)
        if corrector is not None:
            inner, snr = corrector
            e, total = 2 * snr**2 * s_s**2, a_s**2 * VARIANCE + s_s**2
            for _ in range(inner):
                slope = 1 - e / total
                mean, spread = slope * mean + e / total * a_s * MEAN, slope**2 * spread + 2 * e
    alpha, _ = scales(process, gammas[-1])
    return mean / alpha, spread / alpha**2


class Fraction(nn.Module):
    """The exact denoiser with the fraction (Nichol & Dhariwal 2021, eq. 15) that makes each step
    exact."""

    def __init__(self, process, gammas):
        super().__init__()
        self.name, self.oracle = process, oracle(parts(), PROCESSES[process])
        self.process, self.gammas = self.oracle.process, gammas

    def forward(self, z, gamma, condition=None):
        guess = self.oracle(z, gamma)
        i = int(np.abs(self.gammas - gamma.item()).argmin())
        at = self.name, self.gammas[i], self.gammas[i + 1]
        tilde, beta, exact = (reverse_variance(n, *at) for n in ("beta_tilde", "beta", "learned"))
        fraction = np.log(exact / tilde) / np.log(beta / tilde)
        guess.fraction = torch.from_numpy(fraction).to(z).expand_as(z)
        return guess


def drawn(sampler, process, variance, n, seed=0):
    """Draw n samples under a reverse variance; an optimal one is measured on the sampler's own
    grid."""
    gammas = sampler.gammas(WIDE, dtype=torch.float64)
    denoiser = oracle(parts(), PROCESSES[process])
    if variance == "learned":
        denoiser = Fraction(process, gammas.numpy())
    sampler = sampler.with_reverse_variance(VARIANCES[variance]())
    if variance == "optimal":
        x = torch.from_numpy(
            MEAN + np.sqrt(VARIANCE) * np.random.default_rng(5).normal(size=(20_000, 2))
        )
        sampler = sampler.calibrated(denoiser, WIDE, x)
    return sampler(denoiser, WIDE, (n, 2), generator=generator(seed), dtype=torch.float64).numpy()


def matches(x, mean, spread, more=0.0):
    """Assert that all means and covariances of a sample agree within 5 standard errors (and a share
    ``more``)."""
    n = len(x)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(spread / n)).all()
    found, exact = np.cov(x.T), np.diag(spread)
    error = np.sqrt((np.outer(spread, spread) + exact**2) / n)
    assert (np.abs(found - exact) < 5 * error + more * exact).all(), (found, exact)


@both
@variances
def test_ancestral_sampler_matches_recursion_for_each_variance(process, variance):
    sampler = Ancestral(6)
    gammas = sampler.gammas(WIDE, dtype=torch.float64).numpy()
    # The optimal variance is measured on 20 000 items, hence an error of 2%.
    more = 0.02 if variance == "optimal" else 0.0
    matches(drawn(sampler, process, variance, 40_000), *recursion(process, gammas, variance), more)


@pytest.mark.parametrize("kind", [Ancestral, PredictorCorrector])
def test_optimal_variance_works_with_one_or_two_steps(kind):
    denoiser, x = oracle(parts(), PROCESSES["vp"]), torch.zeros(4, 2)
    for schedule, steps in ((WIDE, 1), (Betas(), 2), (Betas(), 1)):
        sampler = kind(steps, variance="optimal").calibrated(denoiser, schedule, x)
        assert sampler(denoiser, schedule, (3, 2), generator=generator(0)).isfinite().all()


@both
def test_learned_variance_beats_beta_and_beta_tilde_at_three_steps(process):
    x = {v: drawn(Ancestral(3), process, v, 30_000) for v in ("beta_tilde", "beta", "learned")}
    off = {v: np.abs(s.var(0) / VARIANCE - 1).max() for v, s in x.items()}
    assert off["learned"] < 0.05 and off["beta_tilde"] > 0.3 and off["beta"] > 0.3, off


# the corrector ------------------------------------------------------------------------------------


def song(z, score, snr, noise):
    """Song et al. 2021, algorithm 4: e = 2 (r |z| / |g|)^2, x + e g + sqrt(2 e) z.

    Norms are averaged over the batch, as in their code (alpha_i, 1 - beta_i in algorithm 5, is left
    at one).
    """
    norm = lambda a: np.linalg.norm(a, axis=1).mean()  # noqa: E731
    e = 2 * (snr * norm(noise) / norm(score)) ** 2
    return z + e * score + math.sqrt(2 * e) * noise


@both
def test_corrector_matches_song_2021_for_typical_score_norm(process):
    """For a point far inside a large space, |score| = sqrt(d) / sigma and |noise| = sqrt(d), to 1 /
    sqrt(d)."""
    d, snr, point = 40_000, 0.3, 0.3

    class Point(nn.Module):
        def forward(self, z, gamma, condition=None):
            return torch.full_like(z, point)

    denoiser = network(Point(), "x0", PROCESSES[process])
    gamma_t, gamma_s = torch.tensor([1.0, 0.5]).double()
    (a_t, s_t), (a_s, s_s) = (scales(process, g.item()) for g in (gamma_t, gamma_s))
    z = a_t * point + s_t * normal(2, d, seed=9)
    ours = PredictorCorrector(1, snr=snr).step(
        z, Step(denoiser, gamma_t, gamma_s, generator=generator(1))
    )
    same = generator(1)
    there = Ancestral(1).step(z, Step(denoiser, gamma_t, gamma_s, generator=same)).numpy()
    noise = torch.randn(2, d, generator=same, dtype=torch.float64).numpy()
    theirs = song(there, (a_s * point - there) / s_s**2, snr, noise)
    assert np.abs(ours.numpy() - theirs).max() < 0.02 * np.abs(theirs - there).max()


@both
def test_predictor_corrector_matches_recursion(process):
    sampler = PredictorCorrector(10, inner=2, snr=0.3)
    gammas = sampler.gammas(WIDE, dtype=torch.float64).numpy()
    found = drawn(sampler, process, "beta_tilde", 40_000)
    matches(found, *recursion(process, gammas, "beta_tilde", (2, 0.3)))


# Langevin -----------------------------------------------------------------------------------------


def test_langevin_on_gaussian_has_exact_stationary_variance():
    """x <- (1 - h / 2 s^2) x + sqrt(h) noise settles at variance s^2 / (1 - h / 4 s^2)."""
    for s, h in ((1.0, 0.1), (1.0, 0.5), (0.2, 0.1), (0.2, 0.002)):
        x = s * normal(20_000, 1)
        x = langevin(lambda x, s=s: -x / s**2, x, h, 300, generator(1))
        exact = s**2 / (1 - h / (4 * s**2))
        assert x.var().item() == pytest.approx(exact, rel=5 * math.sqrt(2 / 20_000))


def test_annealed_langevin_is_algorithm_1_of_song_and_ermon():
    """x + (a_i / 2) score + sqrt(a_i) noise with a_i = eps sigma_i^2 / sigma_L^2, from level to
    level."""
    truth = oracle(parts(), PROCESSES["ve"])
    rate, inner = 0.2, 3  # eps / sigma_L^2 = 2e-5 / .01^2
    gammas = torch.tensor([3.0, 1.0, -2.0]).double()
    z = normal(50, 2, seed=3)
    *_, ours = AnnealedLangevin(2, inner=inner, rate=rate).path(
        truth, gammas, z, None, generator(4)
    )
    noise, x = generator(4), z
    for sigma in gammas[1:].div(2).exp():
        size = rate * sigma**2
        for _ in range(inner):
            score = -(x - torch.from_numpy(MEAN)) / (torch.from_numpy(VARIANCE) + sigma**2)
            x = (
                x
                + size / 2 * score
                + size.sqrt() * torch.randn(50, 2, generator=noise, dtype=torch.float64)
            )
    torch.testing.assert_close(ours, x)


def test_langevin_config_step_size_keeps_mode_width():
    """A mode as in ablation=langevin, of standard deviation .2. The shipped step size widens it by
    1% at most."""
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sampler" / "langevin.yaml"))
    sampler = build(config, "sampler")
    assert isinstance(sampler, Langevin)
    truth = oracle(([1.0], [[0.0, 0.0]], [[[0.04, 0.0], [0.0, 0.04]]]))
    assert 1 / math.sqrt(1 - sampler.size / (4 * 0.04)) < 1.01
    x = sampler(truth, WIDE, (2000, 2), generator=generator())
    assert x.std().item() == pytest.approx(0.2, rel=0.01 + 4 / math.sqrt(2 * 4000))


# which model a sampler draws from -----------------------------------------------------------------


def test_sampler_variance_overrides_bound_variance():
    assert isinstance(Ancestral(3).with_reverse_variance(Beta()).reverse, Beta)
    own = Ancestral(3, variance="beta_tilde")
    assert isinstance(own.with_reverse_variance(Beta()).reverse, BetaTilde)
    first = Ancestral(3)
    first.with_reverse_variance(Beta())
    assert isinstance(first.reverse, BetaTilde)  # what was asked is left as it was
    noisy = DDIM(
        7, eta=1.0
    )  # whose noise is eta times beta tilde's root (Song et al. 2021, eq. 16)
    assert noisy.with_reverse_variance(Beta()) is noisy
    words = "sampler.variance='betta'", "beta_tilde, beta, optimal, learned"
    refused(lambda: Ancestral(3, variance="betta"), *words)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_numeric_variance_interpolates_logarithms_of_ho_and_salimans(share):
    """Classifier-free guidance, section 2: (s~^2)^(1 - v) (s^2)^v, both from lambda = log SNR."""
    gamma_t, gamma_s = torch.tensor(1.5).double(), torch.tensor(-0.5).double()
    truth = oracle(([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]]))
    sampler = Ancestral(1, variance=share)
    z = torch.zeros(40_000, 2).double()  # so that the mean of the step is 0
    step = next(sampler.path(truth, torch.stack([gamma_t, gamma_s]), z, generator=generator()))
    kept = 1 - math.exp(gamma_s - gamma_t)
    tilde, forward = (kept * torch.sigmoid(gamma).item() for gamma in (gamma_s, gamma_t))
    expected = tilde ** (1 - share) * forward**share
    assert step.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / step.numel()))


def churned(gammas, raised, noise, low, high):
    """Return (mean, variance) (2,) of y after algorithm 2 from N(0, s_max^2), with D = m + v / (v +
    s^2) (y - m)."""
    ladder = [math.exp(gamma / 2) for gamma in gammas]
    mean, spread = np.zeros(2), np.full(2, ladder[0] ** 2)
    for s, then in itertools.pairwise(ladder):
        if low <= s <= high:
            spread = spread + noise**2 * ((s * (1 + raised)) ** 2 - s**2)
            s = s * (1 + raised)
        # The slope (y - D) / s is s / (v + s^2) times y - m.
        euler = 1 + (then - s) * s / (VARIANCE + s**2)
        factor = 1 + (then - s) / 2 * (s / (VARIANCE + s**2) + then / (VARIANCE + then**2) * euler)
        mean, spread = MEAN + factor * (mean - MEAN), factor**2 * spread
    return mean, spread


@pytest.mark.parametrize("limits", [(0.0, None), (0.05, 5.0)])
def test_edm_moments_match_algorithm_2_and_converge_to_data(limits):
    """Under VE, where the prior is N(0, s_max^2) of y itself. ``test_samplers`` shows that other
    processes have the same path."""
    low, high = limits
    errors = []
    for steps, churn in ((10, 3.0), (200, 30.0), (1000, 30.0)):
        sampler = EDM(steps, churn=churn, low=low, high=high)
        gammas = sampler.gammas(WIDE, dtype=torch.float64)
        mean, spread = churned(gammas.tolist(), churn / steps, 1.0, low, high or math.inf)
        errors.append(np.abs(spread / VARIANCE - 1).max() + np.abs(mean - MEAN).max())
        if steps == 10:
            n, denoiser = 60_000, oracle(parts(), PROCESSES["ve"])
            x = sampler(denoiser, WIDE, (n, 2), generator=generator(1), dtype=torch.float64).numpy()
            assert np.abs(x.mean(0) - mean).max() < 5 * np.sqrt(spread.max() / n)
            assert np.abs(x.var(0) / spread - 1).max() < 5 * math.sqrt(2 / n)
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.02
