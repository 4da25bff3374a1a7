"""Shared by tests of the mathematics: mixtures with a known truth, exact averages, refusals."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from tests import refusal
from triptych.diffusion.condition import Vectors
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import Process, VariancePreserving, expand_like
from triptych.diffusion.schedule import BetaLinear, Cosine, Linear, Schedule, Sigmoid

SCHEDULES = {"linear": Linear, "cosine": Cosine, "beta_linear": BetaLinear, "sigmoid": Sigmoid}
U = 2.0**-24  # float32's unit roundoff: the largest relative error of one operation


every_schedule = pytest.mark.parametrize("kind", SCHEDULES.values(), ids=SCHEDULES)
refused = functools.partial(refusal.refused, error=ValueError)
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def noise_floor(measure, draw, pairs=5):
    """Return the measure between ``pairs`` of independent true sets, draw(2 i) and draw(2 i + 1),
    sorted."""
    return sorted(measure(draw(2 * i), draw(2 * i + 1)) for i in range(pairs))


def ring(k=8, radius=1.5, std=0.15):
    """Return (weights, means, covariances) of k Gaussians on a circle."""
    angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return (
        torch.full((k,), 1 / k, dtype=torch.float64),
        means,
        std**2 * torch.eye(2).double().repeat(k, 1, 1),
    )


def ring_mixture() -> GaussianMixture:
    return GaussianMixture(*ring())


def lopsided():
    """Return three different, correlated components in the plane."""
    covariances = [
        [[0.30, 0.12], [0.12, 0.10]],
        [[0.05, -0.03], [-0.03, 0.20]],
        [[0.40, 0.0], [0.0, 0.02]],
    ]
    means = [[1.0, -0.5], [-0.8, 0.9], [0.2, 0.1]]
    return [torch.tensor(a, dtype=torch.float64) for a in ([0.2, 0.5, 0.3], means, covariances)]


def correlated(d):
    """Return one correlated Gaussian in R^d: weights (1,), mean (1, d), covariance (1, d, d)."""
    generator = torch.Generator().manual_seed(d)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    mean = torch.randn(1, d, generator=generator, dtype=torch.float64) / 2
    return (
        torch.ones(1, dtype=torch.float64),
        mean,
        (0.3 * root @ root.T + 0.05 * torch.eye(d).double())[None],
    )


def distribution(parts, alpha=1.0, sigma=0.0):
    """Return torch's own p(z), z = alpha x + sigma eps, of a mixture (weights, means,
    covariances)."""
    weights, means, covariances = parts
    spread = alpha**2 * covariances + sigma**2 * torch.eye(means.shape[1]).double()
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(alpha * means, spread))


def entropy_by_quadrature(parts, alpha, sigma, reach=8.0, points=500):
    """Return H(z) of a mixture in the plane: -int p log p on a grid. The error falls exponentially
    once the grid resolves p."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    log_p = distribution(parts, alpha, sigma).log_prob(torch.cartesian_prod(axis, axis))
    return -(log_p.exp() * log_p).sum().item() * (axis[1] - axis[0]).item() ** 2


def oracle(parts, process: Process | None = None) -> Oracle:
    return Oracle(GaussianMixture(*parts), process or VariancePreserving())


def row(space, alpha, sigma):
    """Return a space's published coefficients (c, d) on (x0, eps); EDM's F has sigma_data = 1/2."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    total = (sigma.square() + 0.25 * alpha.square()).sqrt()
    return {
        "x0": (one, zero),
        "epsilon": (zero, one),
        "score": (zero, -1 / sigma),
        "v": (-sigma, alpha),
        "velocity": (-one, one),
        "edm": (2 * sigma / total, -0.5 * alpha / total),
    }[space]


class Given(nn.Module):
    """The exact denoiser of x given v, for a joint mixture of both.

    v | k ~ N(m_k, t^2 I) and x | v, k ~ N(A_k v + b_k, s^2). Given v, x is a mixture with weights
    w_k N(v; m_k, t^2 I) up to a factor; without v, it is a mixture with covariances s^2 I + t^2 A_k
    A_k'.

    Args:
        weights, centres, maps, offsets: w (K,), m (K, p), A (K, d, p) and b (K, d).
        v_std, x_std: t and s.
        name: name of the part of the condition that holds v.
    """

    conditional = True

    def __init__(self, weights, centres, maps, offsets, v_std, x_std, name="v", process=None):
        super().__init__()
        self.weights, self.centres, self.maps, self.offsets = weights, centres, maps, offsets
        self.v_std, self.x_std, self.name = v_std, x_std, name
        self.process = process or VariancePreserving()
        self.conditions = {name: Vectors(maps.shape[2])}

    def joint(self):
        """Return (v, x) as a mixture in R^(p + d)."""
        k, d, p = self.maps.shape
        means = torch.cat(
            [self.centres, torch.einsum("kij,kj->ki", self.maps, self.centres) + self.offsets], 1
        )
        across = self.v_std**2 * self.maps
        low = self.v_std**2 * torch.eye(p, dtype=torch.float64).repeat(k, 1, 1)
        high = across @ self.maps.mT + self.x_std**2 * torch.eye(d, dtype=torch.float64)
        rows = torch.cat([low, across.mT], 2), torch.cat([across, high], 2)
        return GaussianMixture(self.weights, means, torch.cat(rows, 1))

    def marginals(self):
        """Return v (p,) and x (d,) alone, as mixtures."""
        whole, p = self.joint(), self.maps.shape[2]
        covariances = torch.einsum("kij,kj,klj->kil", whole.bases, whole.scales, whole.bases)
        covariances = (covariances + covariances.mT) / 2
        return [
            GaussianMixture(self.weights, whole.means[:, a], covariances[:, a, a])
            for a in (slice(p), slice(p, None))
        ]

    def sample(self, n, generator):
        """Draw (v (n, p), x (n, d)), float32."""
        drawn, _ = self.joint().sample(n, generator)
        return drawn.split([self.maps.shape[2], self.maps.shape[1]], 1)

    def forward(self, z, gamma, condition=None):
        alpha, sigma = self.process.alpha_sigma(expand_like(gamma, z))
        if condition is None:
            return Oracle(self.marginals()[1], self.process)(z, gamma)
        v = condition.parts[self.name].value.to(z)
        means = torch.einsum("kij,bj->bki", self.maps.to(z), v) + self.offsets.to(z)
        off = z.unsqueeze(1) - alpha.reshape(-1, 1, 1) * means
        variance = ((alpha * self.x_std).square() + sigma.square()).reshape(-1, 1)
        near = (v.unsqueeze(1) - self.centres.to(z)).square().sum(2) / (2 * self.v_std**2)
        share = (self.weights.to(z).log() - near - off.square().sum(2) / (2 * variance)).softmax(1)
        return Prediction("score", -(share.unsqueeze(2) * off).sum(1) / variance, z, alpha, sigma)


def given(name="v"):
    """Return three components with x in the plane and v in R^3."""
    generator = torch.Generator().manual_seed(5)
    maps = 0.4 * torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    centres = torch.tensor(
        [[1.0, 0.0, -0.5], [-1.0, 0.5, 0.0], [0.0, -1.0, 1.0]], dtype=torch.float64
    )
    offsets = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    return Given(torch.tensor([0.5, 0.3, 0.2]).double(), centres, maps, offsets, 0.4, 0.2, name)


class Says(nn.Module):
    """A network that returns a denoiser's prediction in one space."""

    def __init__(self, denoiser, space):
        super().__init__()
        self.denoiser, self.space = denoiser, space

    def forward(self, z, gamma, condition):
        return self.denoiser(z, gamma, condition).view(self.space)


class Wrong(nn.Module):
    """A network with an error everywhere that differs between noise levels."""

    def forward(self, z, gamma, condition):
        gamma = gamma.reshape(-1, *(1,) * (z.ndim - 1))
        return torch.sin(3 * z) + 0.1 * gamma + 0.3 * z.flip(-1)


class Scaled(Wrong):
    """``Wrong`` times a learned gain, for tests of gradients."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, z, gamma, condition):
        return self.gain * super().forward(z, gamma, condition)


def network(module: nn.Module, space: str, process: Process | None = None) -> Denoiser:
    return Denoiser(module, Output(space), process or VariancePreserving())


def cubature(n: int) -> Tensor:
    """Return points (2n, n) whose plain mean is the exact N(0, I) expectation of any polynomial of
    degree 3."""
    axes = math.sqrt(n) * torch.eye(n, dtype=torch.float64)
    return torch.cat([axes, -axes])


def legendre(n: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights (n,) on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2


def trapezoid_times(schedule: Schedule, n: int) -> tuple[Tensor, Tensor]:
    """Return times (n,) at equal steps of gamma and the trapezoid rule's weights in t. The rule's
    error is of order 1 / n^2."""
    t = schedule.t_of(
        torch.linspace(schedule.gamma_min, schedule.gamma_max, n, dtype=torch.float64)
    )
    gap = t.diff()
    zero = gap.new_zeros(1)
    return t, (torch.cat([gap, zero]) + torch.cat([zero, gap])) / 2
