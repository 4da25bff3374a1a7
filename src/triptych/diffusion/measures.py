r"""How far a set of samples is from the truth, and how far the truth is from itself.

No distance between two finite sets is zero: each figure here is read beside the same measure between two
independent true sets of the same size. Points are (n, d); features are (n, f): InceptionV3's, by which the
Fréchet distance is FID, or those of a classifier trained on the clean data set, by which it is not.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .mixture import GaussianMixture

DISTANCES = 2**23  # in memory


# points -------------------------------------------------------------------------------------------------


def directions(dim: int, n: int = 64) -> Tensor:
    """Return (n, dim) unit vectors: equal angles over the half circle if dim = 2, else random but fixed."""
    if dim == 2:
        angle = torch.arange(n, dtype=torch.float64) * (math.pi / n)
        return torch.stack([angle.cos(), angle.sin()], 1)
    v = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True)


def sliced_wasserstein(a: Tensor, b: Tensor, n: int = 64) -> float:
    """Compute sliced Wasserstein-2: root mean over ``n`` fixed directions of the projections' squared W2."""
    along = directions(a.shape[1], n).T
    gap = (a.double() @ along).sort(0).values - (b.double() @ along).sort(0).values
    return gap.square().mean().sqrt().item()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Estimate 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013), without diagonals: unbiased."""
    within = [_sum_of_distances(s, s) / (len(s) * (len(s) - 1)) for s in (a, b)]
    return 2 * _sum_of_distances(a, b) / (len(a) * len(b)) - sum(within)


def _sum_of_distances(a: Tensor, b: Tensor) -> float:
    return float(sum(float(torch.cdist(part, b.double()).sum()) for part in a.double().split(_rows(b))))


def _rows(b: Tensor) -> int:
    """Return how many points' distances to all of b are held at a time."""
    return min(1024, max(1, DISTANCES // len(b)))


def mode_fractions(x: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return each component's share of points x (n, d), (K,): the mean of its responsibilities p(k | x).

    Over true points its expectation is the weight exactly, E p(k | x) = w_k, unlike a count of nearest means.
    """
    return mixture.log_joint(x.to(mixture.means)).softmax(1).mean(0)


# images, through features -------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Mean (f,) and covariance (f, f), double, of features of ``n`` items."""

    n: int
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, parts: Iterable[Tensor]) -> "Moments":
        """Return moments of the features (n_i, f) of all parts; only sums are held (Chan et al. 1979)."""
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
    """Compute the Frechet distance between Gaussians: moments, or features (n, f) of two rows or more.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2}).
    """
    a, b = (Moments.of([one]) if isinstance(one, Tensor) else one for one in (a, b))
    if min(a.n, b.n) < 2:
        raise ValueError(f"frechet_distance: {a.n} and {b.n} samples, at least two of each are needed")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def covered(points: Tensor, by: Tensor, k: int = 3) -> float:
    """Return the share of ``points`` in the union of balls about ``by`` up to their k-th other neighbour.

    Of features (n, f): precision is the share of samples covered by data, recall that of data covered by
    samples (Kynkaanniemi et al. 2019).
    """
    by, rows = by.double(), _rows(by)
    # The nearest of all is the point itself.
    radius = torch.cat([torch.cdist(p, by).topk(k + 1, largest=False).values[:, -1] for p in by.split(rows)])
    inside = [(torch.cdist(part, by) <= radius).any(1) for part in points.double().split(rows)]
    return torch.cat(inside).double().mean().item()


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples classified as the class they were drawn for: logits (n, K), labels (n,)."""
    return (logits.argmax(1) == labels).double().mean().item()
