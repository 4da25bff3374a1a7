"""Gaussian mixtures given in the configuration: data with a known density."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from triptych.data.base import DataError, SyntheticData
from triptych.declare import Count, Ge, Positive
from triptych.diffusion.mixture import EmbeddedMixture, GaussianMixture


class Mixture(SyntheticData):
    """A mixture of K Gaussians in d dimensions; an item's label is the number of its component.

    weights: K numbers with the sum 1; means: K lists of d numbers; covariances: K entries, each a
    matrix, d variances or a single variance.
    """

    name = "mixture"

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[Any],
        covariances: Sequence[Any],
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        try:
            self.gaussians = GaussianMixture(weights, means, covariances)
        # torch raises any of these for lists of unequal length.
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"data.weights, data.means, data.covariances: {error}") from error
        self.num_classes, self.shape = len(self.gaussians.weights), (self.gaussians.dim,)

    @property
    def mixture(self) -> GaussianMixture:
        return self.gaussians

    def formula(self) -> dict[str, Any]:
        parts = self.gaussians.weights, self.gaussians.means, self.gaussians.covariances
        return {"mixture": [[f"{v:.12g}" for v in part.flatten().tolist()] for part in parts]}

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.mixture.sample(n, generator)


class Ring(Mixture):
    """A ring of `modes` equal Gaussians in the plane.

    They have the standard deviation `std` and are evenly spaced on a circle of `radius`.
    """

    name = "ring"

    def __init__(
        self, modes: Count = 8, radius: Positive = 1.5, std: Positive = 0.15, **sizes: Any
    ) -> None:
        self.described = [modes, radius, std]
        angles = [2 * math.pi * k / modes for k in range(modes)]
        means = [[radius * math.cos(a), radius * math.sin(a)] for a in angles]
        super().__init__([1 / modes] * modes, means, [std**2] * modes, **sizes)


class EmbeddedRing(Ring):
    r"""A ring in a fixed plane of R^dim, with a little noise across the plane.

    x = P u + off_plane (I - P P^T) n, where u is a point of `Ring` and n ~ N(0, I).
    The toy data of Li & He (2025, JiT) lie in the plane itself; here the noise across the plane
    gives them a density. P (dim, 2) has orthonormal columns and is the same for all runs, so that
    every formula is the ring's: p(x) = p_ring(P^T x) N(rest of x; 0, off_plane^2), C_k = std^2 P
    P^T + off_plane^2 (I - P P^T).

    dim: dimension of the space; off_plane: standard deviation in each direction across the plane;
    the other arguments are those of `Ring`.
    """

    name = "embedded_ring"

    def __init__(
        self, dim: Annotated[int, Ge(2)] = 16, off_plane: Positive = 0.01, **ring: Any
    ) -> None:
        super().__init__(**ring)
        self.off_plane, self.shape = off_plane, (dim,)
        columns = torch.randn(
            dim, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        self.embedded = EmbeddedMixture(self.gaussians, torch.linalg.qr(columns).Q, off_plane)

    @property
    def mixture(self) -> GaussianMixture:
        return self.embedded

    def formula(self) -> dict[str, Any]:
        numbers = (*self.shape, self.off_plane, *self.described)
        return {"embedded_ring": [f"{number:.12g}" for number in numbers]}
