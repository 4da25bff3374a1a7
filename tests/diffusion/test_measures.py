"""Measures against closed forms, brute force and another library's code."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from triptych.diffusion.measures import (
    class_accuracy,
    covered_fraction,
    energy_distance,
    fixed_directions,
    frechet_distance,
    mode_fractions,
    sliced_wasserstein,
)
from triptych.diffusion.mixture import GaussianMixture

from .oracles import normal, refused


@pytest.mark.parametrize("d", [2, 5])
def test_sliced_wasserstein_of_shift_is_norm_over_sqrt_d(d):
    """W2 of a shift along v is |shift . v|, whose mean square over the sphere is |shift|^2 / d."""
    x, shift = normal(50, d), normal(d, seed=1)
    found = sliced_wasserstein(x, x[torch.randperm(50)] + shift, n=20_000 if d > 2 else 64)
    assert found == pytest.approx(shift.norm().item() / math.sqrt(d), rel=1e-12 if d == 2 else 0.02)
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(fixed_directions(d).norm(dim=1), torch.ones(64).double())


def test_energy_distance_is_unbiased_and_matches_closed_form():
    """On the line E|X - Y| of N(m, 2) is known. For equal distributions the mean over draws is
    within 4 standard errors of 0."""
    pairs = [(normal(100, 2, seed=2 * i), normal(100, 2, seed=2 * i + 1)) for i in range(60)]
    same = torch.tensor([energy_distance(*pair) for pair in pairs])
    assert abs(same.mean()) < 4 * same.std() / math.sqrt(60)
    m = 1.5
    between = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    found = energy_distance(normal(4000, 1), normal(4000, 1, seed=1) + m)
    assert found == pytest.approx(2 * between - 4 / math.sqrt(math.pi), rel=0.06)


def test_mode_fractions_average_component_posterior():
    """Bayes' rule on the line, with components of different weights and widths."""
    weights, means, deviations = np.array([0.1, 0.9]), np.array([0.0, 1.0]), np.array([0.3, 1.0])
    mixture = GaussianMixture(weights, means[:, None], (deviations**2)[:, None, None])
    x = np.array([-0.4, 0.1, 0.45, 2.0])
    density = weights * scipy.stats.norm.pdf(x[:, None], means, deviations)
    expected = (density / density.sum(1, keepdims=True)).mean(0)
    found = mode_fractions(torch.from_numpy(x)[:, None], mixture)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_mode_fractions_of_true_samples_converge_to_weights():
    """The mean over draws is within 4 standard errors, and the error halves with four times the
    points."""
    weights = torch.tensor([0.15, 0.6, 0.25]).double()
    means = torch.tensor([[0.0, 0.0], [1.2, 0.0], [0.0, 1.5]]).double()
    widths = torch.tensor([0.05, 0.6, 0.2]).double()
    mixture = GaussianMixture(weights, means, widths[:, None, None] * torch.eye(2).double())
    generator, error = torch.Generator().manual_seed(0), {}
    for n in (500, 2000, 8000):
        drawn = [mixture.sample(n, generator)[0].double() for _ in range(60)]
        ours = torch.stack([mode_fractions(x, mixture) for x in drawn])
        assert ((ours.mean(0) - weights).abs() < 4 * ours.std(0) / math.sqrt(60)).all()
        near = torch.stack(
            [torch.bincount(torch.cdist(x, means).argmin(1), minlength=3) / n for x in drawn]
        )
        error[n] = [(f - weights).abs().sum(1).mean().item() / 2 for f in (ours, near)]
    assert error[500][0] / error[2000][0] == pytest.approx(2, abs=0.5)
    assert error[2000][0] / error[8000][0] == pytest.approx(2, abs=0.5)
    assert error[8000][1] > 0.9 * error[500][1] > 10 * error[8000][0]  # the bias of counts remains


def test_frechet_distance_is_that_of_the_fitted_gaussians():
    a, b = normal(300, 6) @ normal(6, 6, seed=1), normal(400, 6, seed=2) @ normal(6, 6, seed=3) + 1
    c_a, c_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    cross = scipy.linalg.sqrtm(c_a @ c_b).real
    exact = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(c_a + c_b - 2 * cross)
    assert frechet_distance(a, b) == pytest.approx(exact)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # With fewer rows than features the covariances are singular, and the distance is still a
    # number.
    assert frechet_distance(a[:4], b[:4]) > 0
    assert frechet_distance(a[:, :1], a[:, :1] + 2) == pytest.approx(4)


def test_precision_and_recall_match_brute_force():
    real, fake = normal(60, 3), 1.5 * normal(70, 3, seed=1)

    def share(points, by, k):
        # The first distance is that of q to itself.
        radii = [sorted((p - q).norm().item() for p in by)[k] for q in by]
        near = [
            any((p - q).norm().item() <= r for q, r in zip(by, radii, strict=True)) for p in points
        ]
        return sum(near) / len(points)

    assert covered_fraction(fake, reference=real) == pytest.approx(share(fake, real, 3))
    assert covered_fraction(real, reference=fake) == pytest.approx(share(real, fake, 3))
    assert covered_fraction(real, reference=real) == 1
    assert (
        covered_fraction(real, reference=real + 100)
        == covered_fraction(real + 100, reference=real)
        == 0
    )
    real, narrow = normal(500, 2), 0.2 * normal(500, 2, seed=1)
    assert (
        covered_fraction(narrow, reference=real) > 0.95
        and covered_fraction(real, reference=narrow) < 0.4
    )


def test_class_accuracy_is_share_of_matching_labels():
    logits = torch.eye(4)[[0, 1, 2, 3, 0]]
    assert class_accuracy(logits, torch.tensor([0, 1, 2, 0, 0])) == pytest.approx(0.8)


def test_measures_refuse_wrong_shapes_and_too_few_samples():
    refused(lambda: frechet_distance(normal(1, 2), normal(9, 2)), "1 and 9")
