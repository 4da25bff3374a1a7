r"""Distances between a set of samples and true data.

No distance between two finite sets is zero: compare each figure with the same measure between two
independent true sets of the same size. Points are (n, d). Features are (n, f): those of
InceptionV3, for which the Fréchet distance is FID, or those of a classifier trained on the clean
data set, for which it is not.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .mixture import GaussianMixture

DISTANCES = 2**23  # maximum number of distances in memory at once


# Distances of points --------------------------------------------------------------------


def fixed_directions(dim: int, n: int = 64) -> Tensor:
    """Return n fixed unit vectors, (n, dim).

    They have equal angles over the half circle if dim = 2; otherwise they are random, with a fixed
    seed.
    """
    if dim == 2:
        angle = torch.arange(n, dtype=torch.float64) * (math.pi / n)
        return torch.stack([angle.cos(), angle.sin()], 1)
    v = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True)


def sliced_wasserstein(a: Tensor, b: Tensor, n: int = 64) -> float:
    """Compute the sliced Wasserstein-2 distance over ``n`` fixed directions.

    It is the root mean of the projections' squared W2 over directions.
    """
    along = fixed_directions(a.shape[1], n).T
    gap = (a.double() @ along).sort(0).values - (b.double() @ along).sort(0).values
    return gap.square().mean().sqrt().item()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Estimate the energy distance between two sets of points (Szekely & Rizzo 2013).

    2 E|X - Y| - E|X - X'| - E|Y - Y'|; unbiased, because the distances of points to themselves are
    left out.
    """
    within = [_sum_of_distances(s, s) / (len(s) * (len(s) - 1)) for s in (a, b)]
    return 2 * _sum_of_distances(a, b) / (len(a) * len(b)) - sum(within)


def _sum_of_distances(a: Tensor, b: Tensor) -> float:
    return float(
        sum(
            float(torch.cdist(part, b.double()).sum())
            for part in a.double().split(_rows_at_a_time(b))
        )
    )


def _rows_at_a_time(b: Tensor) -> int:
    """Return for how many points at once all distances to ``b`` fit in memory."""
    return min(1024, max(1, DISTANCES // len(b)))


def mode_fractions(x: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return the share of each mixture component among points x (n, d), (K,).

    It is the mean of the component's responsibilities p(k | x). Over true points its expectation is
    exactly the weight, E p(k | x) = w_k, unlike a count of nearest means.
    """
    return mixture.log_joint(x.to(mixture.means)).softmax(1).mean(0)


# Distances of images by their features -----------------------------------------------


class Moments(NamedTuple):
    """Mean (f,) and covariance (f, f), in double, of the features of ``n`` items."""

    n: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, parts: Iterable[Tensor]) -> "Moments":
        """Return the moments of all features together, given in parts (n_i, f).

        Only sums are held in memory (Chan et al. 1979).
        """
        n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
        for part in filter(len, parts):
            rows = part.double()
            m, centre = len(rows), rows.mean(0)
            away = rows - centre
            step, n = centre - mean, n + m
            scatter = scatter + away.T @ away + torch.outer(step, step) * ((n - m) * m / n)
            mean = mean + step * (m / n)
        return cls(n, mean, scatter / max(n - 1, 1))


def frechet_distance(a: Moments | Tensor, b: Moments | Tensor) -> float:
    """Compute the Fréchet distance between two Gaussians.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2}). ``a``, ``b``: moments, or features (n, f) of
    at least two items.
    """
    a, b = (Moments.of([one]) if isinstance(one, Tensor) else one for one in (a, b))
    if min(a.n, b.n) < 2:
        raise ValueError(f"frechet_distance: {a.n} and {b.n} samples; needs at least two of each")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def covered_fraction(points: Tensor, reference: Tensor, k: int = 3) -> float:
    """Return the share of ``points`` that lie close to ``reference``, as for precision and recall.

    A point is close if it lies in a ball around an item of ``reference`` that reaches as far as the
    item's k-th nearest neighbour in ``reference``. With features (n, f), precision is the share of
    samples close to data, and recall the share of data close to samples (Kynkaanniemi et al. 2019).
    """
    reference, rows = reference.double(), _rows_at_a_time(reference)
    # Leave out the nearest point, which is the point itself.
    radius = torch.cat(
        [
            torch.cdist(p, reference).topk(k + 1, largest=False).values[:, -1]
            for p in reference.split(rows)
        ]
    )
    inside = [
        (torch.cdist(part, reference) <= radius).any(1) for part in points.double().split(rows)
    ]
    return torch.cat(inside).double().mean().item()


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples that a classifier assigns to the class they were drawn for.

    ``logits``: (n, K); ``labels``: (n,).
    """
    return (logits.argmax(1) == labels).double().mean().item()
