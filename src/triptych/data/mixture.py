"""Gaussian mixtures given in the config: data whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from reprlib import repr as short
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from triptych.data.base import DataError, Generated
from triptych.declare import Count, Ge, Positive

if TYPE_CHECKING:
    from triptych.diffusion.mixture import GaussianMixture


def wrong(key: str, value: Any, needs: str) -> DataError:
    """Return the error for a key's value."""
    return DataError(f"data.{key}={short(value)}: needs {needs}")


def tensor(key: str, value: Any, needs: str) -> Tensor:
    """Convert nested lists of equal lengths to finite float64; else DataError with the key."""
    try:
        array = torch.tensor(value, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise wrong(key, value, needs) from error
    if not array.isfinite().all():
        raise wrong(key, value, needs)
    return array


def covariance(key: str, value: Any, d: int) -> Tensor:
    """Convert a matrix, d variances or one to (d, d) float64; DataError: not symmetric positive definite."""
    needs = f"a {d} x {d} list, a list of {d} variances or one variance for each component"
    matrix = tensor(key, value, needs)
    if matrix.shape in ((), (d,)):
        matrix = torch.diag(matrix.expand(d))
    if matrix.shape != (d, d):
        raise wrong(key, value, needs)
    symmetric = torch.allclose(matrix, matrix.T, rtol=1e-6, atol=0)
    if not symmetric or (torch.linalg.eigvalsh(matrix) <= 0).any():
        raise wrong(key, value, "a symmetric positive definite matrix")
    return matrix


class Mixture(Generated):
    """K Gaussians in d dimensions; the labels are their numbers.

    weights: K, summing to 1; means: K lists of d; covariances: K entries, each as `covariance` says.
    """

    name = "mixture"

    def __init__(
        self, weights: Sequence[float], means: Sequence[Any], covariances: Sequence[Any], **sizes: Any
    ) -> None:
        super().__init__(**sizes)
        needs = "a list of positive numbers that sum to 1"
        w = tensor("weights", weights, needs)
        if w.ndim != 1 or not len(w) or (w <= 0).any() or abs(w.sum().item() - 1) > 1e-6:
            raise wrong("weights", weights, needs)
        k, needs = len(w), f"{len(w)} lists of equal length, one for each of data.weights"
        m = tensor("means", means, needs)
        if m.ndim != 2 or len(m) != k or not (d := m.shape[1]):
            raise wrong("means", means, needs)
        if not isinstance(covariances, Sequence) or len(covariances) != k:
            raise wrong("covariances", covariances, f"a list of {k}, one for each of data.weights")
        c = torch.stack([covariance(f"covariances[{i}]", one, d) for i, one in enumerate(covariances)])
        self._parameters = w, m, c
        self.num_classes, self.shape = k, (d,)

    @cached_property
    def mixture(self) -> GaussianMixture:
        from triptych.diffusion.mixture import GaussianMixture

        return GaussianMixture(*self._parameters)

    def formula(self) -> dict[str, Any]:
        return {"mixture": [[f"{v:.12g}" for v in part.flatten().tolist()] for part in self._parameters]}

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.mixture.sample(n, generator)


class Ring(Mixture):
    """`modes` equal Gaussians of deviation `std`, evenly spaced on a circle of `radius`, in the plane."""

    name = "ring"

    def __init__(self, modes: Count = 8, radius: Positive = 1.5, std: Positive = 0.15, **sizes: Any) -> None:
        self.described = [modes, radius, std]
        angles = [2 * math.pi * k / modes for k in range(modes)]
        means = [[radius * math.cos(a), radius * math.sin(a)] for a in angles]
        super().__init__([1 / modes] * modes, means, [std**2] * modes, **sizes)


class EmbeddedRing(Ring):
    r"""The ring in one fixed plane of R^dim: x = P u + off_plane (I - P P^T) n, u of the ring, n ~ N(0, I).

    After the toy of Li & He (2025, JiT), whose points lie in the plane; a little noise across it gives them a
    density. P (dim, 2) has orthonormal columns and is the same for all runs, so that every formula is the
    ring's: p(x) = p_ring(P^T x) N(rest of x; 0, off_plane^2), C_k = std^2 P P^T + off_plane^2 (I - P P^T).

    dim: of the space; off_plane: deviation in each direction across the plane; the others as `Ring`.
    """

    name = "embedded_ring"

    def __init__(self, dim: Annotated[int, Ge(2)] = 16, off_plane: Positive = 0.01, **ring: Any) -> None:
        super().__init__(**ring)
        self.off_plane, self.shape = off_plane, (dim,)
        columns = torch.randn(dim, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.plane = torch.linalg.qr(columns).Q

    @cached_property
    def mixture(self) -> GaussianMixture:
        from triptych.diffusion.mixture import EmbeddedMixture, GaussianMixture

        return EmbeddedMixture(GaussianMixture(*self._parameters), self.plane, self.off_plane)

    def formula(self) -> dict[str, Any]:
        numbers = (*self.shape, self.off_plane, *self.described)
        return {"embedded_ring": [f"{number:.12g}" for number in numbers]}
