"""Mixtures."""

import math

import pytest
import torch

from triptych.data.mixture import EmbeddedRing, Mixture, Ring
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving

from .helpers import refused

WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]]
COVARIANCES = [0.04, [0.09, 0.01], [[0.05, 0.03], [0.03, 0.05]]]
FULL = torch.tensor([[[0.04, 0], [0, 0.04]], [[0.09, 0], [0, 0.01]], [[0.05, 0.03], [0.03, 0.05]]])


def ready(data):
    data.setup()
    return data


def test_mixture_items_match_weights_and_means_of_labels():
    data = ready(Mixture(WEIGHTS, MEANS, COVARIANCES, train_size=20_000))
    train = data.splits["train"]
    assert data.shape == (2,) and data.num_classes == 3 and data.levels is None
    assert train.values.dtype == torch.float32 and train.labels.dtype == torch.int64
    for k in range(3):
        own = train.values[train.labels == k]
        assert abs(len(own) / 20_000 - WEIGHTS[k]) < 5 * math.sqrt(0.25 / 20_000)
        assert torch.allclose(own.mean(0), torch.tensor(MEANS[k]), atol=0.03)


def test_mixture_log_prob_matches_torch_distributions():
    truth = Mixture(WEIGHTS, MEANS, COVARIANCES).mixture
    x = torch.tensor([[0.3, -0.2], [1.0, 1.0]])
    parts = [
        torch.distributions.MultivariateNormal(torch.tensor(m), c).log_prob(x) + math.log(w)
        for w, m, c in zip(WEIGHTS, MEANS, FULL, strict=True)
    ]
    assert torch.allclose(truth.log_prob(x), torch.stack(parts).logsumexp(0), atol=1e-4)


@pytest.mark.parametrize("d", [1, 5])
def test_mixture_supports_any_dimension(d):
    data = ready(
        Mixture([1.0], [[0.0] * d], [[[float(i == j) for i in range(d)] for j in range(d)]])
    )
    assert data.splits["test"].values.shape == (5000, d) and data.shape == (d,)


def test_ring_equals_mixture_of_modes_on_circle():
    ring = Ring(modes=4, radius=2.0, std=0.5)
    same = Mixture([0.25] * 4, [[2, 0], [0, 2], [-2, 0], [0, -2]], [0.25] * 4)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ring.mixture.log_prob(x), same.mixture.log_prob(x), atol=1e-4)
    assert ring.num_classes == 4 and Ring().num_classes == 8


def test_embedded_ring_is_ring_with_gaussian_noise_off_plane():
    """Check density, moments and exact denoiser of p(x) = p_ring(P^T x) N(rest; 0, s^2)."""
    d, s = 7, 0.3
    data, ring = EmbeddedRing(dim=d, off_plane=s, modes=3, train_size=100_000), Ring(modes=3)
    x, plane = ready(data).splits["train"].values.double(), data.mixture.plane
    assert torch.allclose(plane.T @ plane, torch.eye(2).double(), atol=1e-12)
    across = data.mixture.orthogonal_part
    rest = across(x)
    assert torch.allclose(rest @ plane, torch.zeros(1).double(), atol=1e-6)
    spread = (rest.square().sum(1).mean() / (d - 2)).item()
    assert spread == pytest.approx(s**2, rel=0.01)
    assert torch.allclose(
        (x @ plane).T.cov(), torch.eye(2).double() * (1.5**2 / 2 + 0.15**2), atol=0.02
    )
    few = x[:50] + 0.1
    normal = -0.5 * across(few).square().sum(1) / s**2 - 0.5 * (d - 2) * math.log(
        2 * math.pi * s**2
    )
    assert torch.allclose(
        data.mixture.log_prob(few), ring.mixture.log_prob(few @ plane) + normal, atol=1e-6
    )
    whole = plane @ (0.15**2 * torch.eye(2).double()) @ plane.T + s**2 * across(
        torch.eye(d).double()
    )
    dense = GaussianMixture([1 / 3] * 3, data.mixture.means, torch.stack([whole] * 3))
    for found, same in (
        (data.mixture.log_joint, dense.log_joint),
        (data.mixture.score, dense.score),
    ):
        assert torch.allclose(found(few, 0.8, 0.6), same(few, 0.8, 0.6), atol=1e-8)
    process, gamma = VariancePreserving(), torch.tensor(-1.0).double()
    alpha, sigma = process.alpha_sigma(gamma)
    guess = Oracle(data.mixture, process)(few, gamma).x0
    inside = Oracle(ring.mixture, process)(few @ plane, gamma).x0
    outside = (
        alpha * s**2 / (alpha**2 * s**2 + sigma**2) * across(few)
    )  # a Gaussian's posterior mean
    assert torch.allclose(guess, inside @ plane.T + outside, atol=1e-5)


@pytest.mark.parametrize("dim", [2, 16])
def test_embedded_ring_entropy_is_sum_of_ring_and_noise(dim):
    """H(x) = H(u) + (dim - 2) / 2 ln(2 pi e s^2), exact for one Gaussian."""
    data = EmbeddedRing(dim=dim, off_plane=0.05, modes=1, std=0.2)
    plane = math.log(2 * math.pi * math.e * 0.2**2)
    across = 0.5 * (dim - 2) * math.log(2 * math.pi * math.e * 0.05**2)
    assert data.mixture.entropy().mean == pytest.approx(plane + across, rel=1e-9)


def test_embedded_ring_formula_depends_on_dim():
    """The numbers of the formula identify the data, not digits that depend on the machine."""
    assert EmbeddedRing(dim=4).formula() == EmbeddedRing(dim=4, train_size=7).formula()
    assert EmbeddedRing(dim=4).formula() != EmbeddedRing(dim=5).formula()
    one, other = EmbeddedRing(dim=4), EmbeddedRing(dim=4, data_seed=3)
    assert torch.equal(one.mixture.plane, other.mixture.plane)


BAD = [  # one that the mixture itself refuses, see its own tests, and what a configuration may hold
    ("weights", [0.5, 0.3, 0.3]),
    ("weights", [0.5, "a", 0.5]),
    ("means", [[0.0, None]] * 3),
    *(
        ("covariances", [0.1, 0.1, bad][:n])
        for n, bad in ((1, 0), (3, 0.0), (3, [1, 1, 1]), (3, [[[1.0]]]))
    ),
]


@pytest.mark.parametrize("key,value", BAD)
def test_invalid_mixture_parameters_are_refused(key, value):
    keys = {"weights": WEIGHTS, "means": MEANS, "covariances": COVARIANCES} | {key: value}
    refused(lambda: Mixture(**keys), "data.weights, data.means, data.covariances: ")


# Splits of one size, which would be equal if they came from one seed.
EQUAL = {"train_size": 500, "val_size": 500, "test_size": 500}


def test_generated_splits_depend_on_data_seed_only():
    one, two = ready(Ring(seed=0, **EQUAL)), ready(Ring(seed=1, **EQUAL | {"train_size": 77}))
    assert one.splits["test"].values.equal(two.splits["test"].values)
    assert two.splits["train"].values.shape == (77, 2)
    assert not one.splits["test"].values.equal(
        ready(Ring(data_seed=1, **EQUAL)).splits["test"].values
    )
    seen = [set(map(tuple, split.values.tolist())) for split in one.splits.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert len(one.splits["val"]) == 500 and len(ready(Ring(val_size=0)).splits["val"]) == 0
