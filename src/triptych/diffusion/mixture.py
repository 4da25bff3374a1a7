r"""Gaussian mixtures with exact density, score and posterior mean.

For ``p(x) = sum_k w_k N(m_k, C_k)`` every noisy marginal is a mixture again, ``p(z) = sum_k w_k
N(alpha m_k, S_k)`` with ``S_k = alpha^2 C_k + sigma^2 I``, so

    score(z) = -sum_k r_k S_k^{-1} (z - alpha m_k),     r_k the responsibilities of z,

and Tweedie's formula gives the exact denoiser. Each C_k is diagonalised once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .condition import Condition, Labels, find_part
from .prediction import Prediction
from .process import Process, expand_like

Numbers = Sequence[Any] | Tensor


class MonteCarlo(NamedTuple):
    """A Monte-Carlo mean and its standard error (0 where the value is exact)."""

    mean: float
    stderr: float


class GaussianMixture(nn.Module):
    """The Gaussian mixture sum_k w_k N(m_k, C_k) in R^d.

    Args:
        weights: (K,), positive, summing to one.
        means: (K, d).
        covariances: K entries, each a symmetric positive definite matrix (d, d), d variances or one
            variance.

    Raises:
        ValueError: the numbers do not define such a mixture.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    bases: Tensor

    def __init__(self, weights: Sequence[float] | Tensor, means: Numbers, covariances: Numbers):
        super().__init__()
        w = torch.as_tensor(weights, dtype=torch.float64)
        m = torch.as_tensor(means, dtype=torch.float64)
        if not constraints.simplex.check(w) or (w == 0).any():
            raise ValueError(f"weights={weights}: must be positive numbers that sum to one")
        if m.ndim != 2 or len(m) != len(w) or len(covariances) != len(w):
            fix = "must have one entry per weight, and means of equal length"
            raise ValueError(f"means, covariances: {fix}")
        if not m.isfinite().all():
            raise ValueError(f"means={means}: must be finite")
        self.covariances = torch.stack(
            [_covariance_matrix(entry, m.shape[1]) for entry in covariances]
        )
        if self.covariances.shape[1:] != (m.shape[1], m.shape[1]):
            size = " x ".join(map(str, self.covariances.shape[1:]))
            raise ValueError(f"covariances: {size}; must be {m.shape[1]} x {m.shape[1]}")
        if not constraints.positive_definite.check(self.covariances).all():
            fix = "must be symmetric and positive definite"
            raise ValueError(f"covariances={covariances}: {fix}")
        variances, bases = torch.linalg.eigh(self.covariances)
        self.register_buffer("weights", w)
        self.register_buffer("means", m)
        self.register_buffer("scales", variances)  # (K, d) eigenvalues of C_k
        self.register_buffer("bases", bases)  # (K, d, d) eigenvectors, in columns

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n points (n, d) float32 and the component each came from (n,)."""
        label = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        white = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        offset = torch.einsum("nij,nj->ni", self.bases[label], self.scales[label].sqrt() * white)
        return (self.means[label] + offset).float(), label

    def log_prob(
        self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
    ) -> Tensor:
        """Return the log density of z = alpha x + sigma eps at the points ``x`` (B, d), nats (B,).

        By default it is the density of the data.
        """
        return self._parts(x, alpha, sigma)[0].logsumexp(1)

    def score(self, z: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Return grad log p(z) at z (B, d); alpha and sigma (B, 1), () or floats."""
        log_joint, pull = self._parts(z, alpha, sigma)
        return -torch.einsum("bk,bki->bi", log_joint.softmax(1), pull)

    def log_joint(
        self, z: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0
    ) -> Tensor:
        """Return log w_k N(z; alpha m_k, S_k) of each component at z (B, d), (B, K)."""
        return self._parts(z, alpha, sigma)[0]

    def entropy(self, n: int = 100_000, seed: int = 0) -> MonteCarlo:
        """Return the differential entropy in nats.

        It is exact for one component, otherwise the mean of -log p over n draws.
        """
        if len(self.weights) == 1:
            exact = 0.5 * (
                self.dim * math.log(2 * math.pi * math.e) + self.scales.log().sum().item()
            )
            return MonteCarlo(exact, 0.0)
        x, _ = self.sample(n, torch.Generator().manual_seed(seed))
        nats = -self.log_prob(x.double())
        return MonteCarlo(nats.mean().item(), nats.std().item() / math.sqrt(n))

    def _parts(
        self, z: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Return log w_k N(z; alpha m_k, S_k) (B, K) and S_k^{-1} (z - alpha m_k) (B, K, d)."""
        alpha, sigma = (
            torch.as_tensor(a, dtype=z.dtype, device=z.device).reshape(-1, 1, 1)
            for a in (alpha, sigma)
        )
        means, scales, bases = self.means.to(z), self.scales.to(z), self.bases.to(z)
        variance = alpha.square() * scales + sigma.square()  # (B or 1, K, d)
        along = torch.einsum("kji,bkj->bki", bases, z.unsqueeze(1) - alpha * means)
        square = (along.square() / variance + torch.log(2 * math.pi * variance)).sum(2)
        pull = torch.einsum("kij,bkj->bki", bases, along / variance)
        return self.weights.to(z).log() - 0.5 * square, pull


class EmbeddedMixture(GaussianMixture):
    """A mixture in a plane of R^d, with Gaussian noise orthogonal to the plane.

    x = P u + std (I - P P^T) n with n ~ N(0, I). Under noise the two parts stay independent, p(z) =
    p_u(P^T z) N(rest of z; 0, alpha^2 std^2 + sigma^2), so the cost is that of the mixture's own
    few dimensions.

    Args:
        inner: the mixture of u, in R^q.
        plane: P (d, q), with orthonormal columns.
        std: standard deviation of the noise in each orthogonal direction.
    """

    plane: Tensor

    def __init__(self, inner: GaussianMixture, plane: Tensor, std: float):
        nn.Module.__init__(self)
        self.inner, self.std = inner, std
        self.register_buffer("plane", plane.double())
        self.register_buffer("weights", inner.weights)
        self.register_buffer("means", inner.means @ self.plane.T)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u, label = self.inner.sample(n, generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return (u.double() @ self.plane.T + self.std * self.orthogonal_part(noise)).float(), label

    def orthogonal_part(self, x: Tensor) -> Tensor:
        """Return the part of x (n, d) that is orthogonal to the plane, (n, d)."""
        plane = self.plane.to(x)
        return x - x @ plane @ plane.T

    def entropy(self, n: int = 100_000, seed: int = 0) -> MonteCarlo:
        inner, rest = self.inner.entropy(n, seed), self.dim - self.inner.dim
        return inner._replace(
            mean=inner.mean + 0.5 * rest * math.log(2 * math.pi * math.e * self.std**2)
        )

    def _parts(
        self, z: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        log_joint, pull = self.inner._parts(z @ self.plane.to(z), alpha, sigma)
        alpha, sigma = (
            torch.as_tensor(a, dtype=z.dtype, device=z.device).reshape(-1, 1)
            for a in (alpha, sigma)
        )
        # Shapes: (B or 1, 1) and (B, d).
        variance, rest = (alpha * self.std).square() + sigma.square(), self.orthogonal_part(z)
        free = self.dim - self.inner.dim
        normal = -0.5 * (
            rest.square().sum(1, keepdim=True) / variance + free * torch.log(2 * math.pi * variance)
        )
        return log_joint + normal, pull @ self.plane.to(z).T + (rest / variance).unsqueeze(1)


class Oracle(nn.Module):
    """The exact denoiser of a mixture, by Tweedie's formula (Luo 2022, eq. 133).

    It gives E[x | z], eps*, the score and v*. For an item with a label it is the denoiser of the
    component with that number.
    """

    conditional = True
    has_likelihood = True

    def __init__(self, mixture: GaussianMixture, process: Process):
        super().__init__()
        self.mixture, self.process = mixture, process
        self.conditions = {"label": Labels(len(mixture.weights))}

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        alpha, sigma = self.process.scales(expand_like(gamma, z))
        log_joint, pull = self.mixture._parts(z, alpha, sigma)
        score = -torch.einsum("bk,bki->bi", log_joint.softmax(1), pull)
        label = find_part(condition, "label")
        if label is not None:
            component_score = -pull[torch.arange(len(z), device=z.device), label.value]
            score = torch.where(label.presence().unsqueeze(1), component_score, score)
        return Prediction("score", score, z, alpha, sigma)


class ExactClassifier(nn.Module):
    """The exact classifier log p(k | z) of a mixture's components under a process."""

    def __init__(self, mixture: GaussianMixture, process: Process):
        super().__init__()
        self.mixture, self.process = mixture, process

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        alpha, sigma = self.process.scales(expand_like(gamma, z))
        return torch.log_softmax(self.mixture.log_joint(z, alpha, sigma), 1)


def _covariance_matrix(covariance: Any, d: int) -> Tensor:
    """Convert a matrix, d variances or one variance to a matrix (d, d) float64."""
    matrix = torch.as_tensor(covariance, dtype=torch.float64)
    if matrix.ndim == 2:
        return matrix
    return torch.diag(matrix.expand(d))
