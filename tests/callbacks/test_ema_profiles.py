"""Profiles of averages: the paper's numbers, running form and sum, post-hoc reconstruction."""

import math

import numpy as np
import pytest

from triptych.callbacks.ema import (
    LONGEST,
    combination_factors,
    half_life_beta,
    power_beta,
    power_exponent,
)


def running(betas: list[float]) -> np.ndarray:
    """Return the weights of the start and of each step in a running average with these factors."""
    weights = np.zeros(len(betas) + 1)
    weights[0] = 1.0
    for n, beta in enumerate(betas, 1):
        weights *= beta
        weights[n] += 1 - beta
    return weights


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_ema_exponent_matches_karras_2024(sigma_rel, gamma):
    """Karras et al. 2024, section 3.1, gives these two values."""
    assert power_exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.28])
def test_sigma_rel_is_relative_standard_deviation_of_profile(sigma_rel):
    """It is the relative standard deviation of tau^gamma, integrated on a grid."""
    gamma, tau = power_exponent(sigma_rel), (np.arange(200_000) + 0.5) / 200_000
    weight = tau**gamma / (tau**gamma).sum()
    mean = (weight * tau).sum()
    assert math.sqrt((weight * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, LONGEST, 1.0, math.nan])
def test_invalid_sigma_rel_is_refused(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel="):
        power_exponent(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.25])
def test_power_beta_weights_match_power_function_profile(sigma_rel):
    n, gamma = 1200, power_exponent(sigma_rel)
    weights = running([power_beta(gamma, t) for t in range(1, n + 1)])
    edges = (np.arange(n + 1) / n) ** (gamma + 1)  # the integral of p from 0 to each step
    assert weights[0] == 0
    np.testing.assert_allclose(weights[1:], np.diff(edges), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("half_life", [0.5, 20, 1e4])
def test_half_life_beta_weights_halve_each_half_life(half_life):
    n = 300
    weights = running([half_life_beta(half_life, t) for t in range(1, n + 1)])
    expected = 2.0 ** (-(n - np.arange(1, n + 1)) / half_life)
    assert weights[0] == 0
    np.testing.assert_allclose(weights[1:], expected / expected.sum(), rtol=1e-8, atol=1e-15)


STORED = [(t, s) for t in range(50, 1001, 50) for s in (0.05, 0.1)]


def density(step: float, sigma_rel: float, tau: np.ndarray) -> np.ndarray:
    gamma = power_exponent(sigma_rel)
    return np.where(tau <= step, (gamma + 1) * (tau / step) ** gamma / step, 0.0)


@pytest.mark.parametrize(
    ("step", "sigma_rel", "missed"), [(1000, 0.07, 0.003), (1000, 0.03, 0.03), (720, 0.08, 0.4)]
)
def test_post_hoc_combination_is_least_squares_solution(step, sigma_rel, missed):
    """On a fine grid, no factors that sum to 1 are nearer than by the grid's own error."""
    tau = (np.arange(20_000) + 0.5) / 20
    profiles = np.stack([density(t, s, tau) for t, s in STORED])
    aim = density(step, sigma_rel, tau)
    # Differences from the last profile keep the sum at 1.
    free, *_ = np.linalg.lstsq((profiles[:-1] - profiles[-1]).T, aim - profiles[-1], rcond=None)
    best = np.append(free, 1 - free.sum())
    ours = combination_factors(STORED, step, sigma_rel)
    assert ours.sum() == pytest.approx(1, abs=1e-12)
    error, least = (np.linalg.norm(f @ profiles - aim) for f in (ours, best))
    assert error <= least * 1.01 + 1e-6 * np.linalg.norm(aim)
    assert 0.8 * missed < error / np.linalg.norm(aim) < missed, (
        "shorter than those stored, it is further off"
    )


@pytest.mark.parametrize(("step", "sigma_rel"), [(1000, 0.05), (500, 0.1)])
def test_post_hoc_combination_of_stored_profile_is_one_hot(step, sigma_rel):
    expected = np.array([float(pair == (step, sigma_rel)) for pair in STORED])
    np.testing.assert_allclose(combination_factors(STORED, step, sigma_rel), expected, atol=1e-6)
