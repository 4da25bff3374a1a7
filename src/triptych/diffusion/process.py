r"""Forward processes: what gamma means for alpha and sigma, and the Gaussian facts that follow.

``q(z_t | x) = N(alpha x, sigma^2 I)``; every formula below is written for a general pair
``(alpha, sigma)`` with ``gamma = log(sigma^2 / alpha^2)``.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from triptych.declare import Positive, declared

from .normal import Normal

BITS = 1 / math.log(2)  # bits in a nat


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) or () to broadcast against ``like`` (B, *event)."""
    return value if value.ndim == 0 else value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


class Process(ABC):
    """A family (alpha, sigma) indexed by gamma. Subclasses give ``alpha_sigma``."""

    def __str__(self) -> str:
        """Return its name and numbers: two of one string are the same process."""
        numbers = ", ".join(f"{key}={value}" for key, value in vars(self).items())
        return type(self).__name__ + (f"({numbers})" if numbers else "")

    @abstractmethod
    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise scale at gamma, same shape as gamma."""

    def diffuse(self, x: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
        """Return z = alpha x + sigma eps (tutorial eq. 69): x, eps (B, *event), gamma (B,) or ()."""
        alpha, sigma = self.alpha_sigma(expand(gamma, x))
        return alpha * x + sigma * eps

    def posterior(self, z: Tensor, x: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Normal:
        """Return q(z_s | z_t, x) for s < t (tutorial eq. 84; VDM eq. 25 onwards), exact for close levels.

        With c = 1 - exp(gamma_s - gamma_t): mean = (alpha_s / alpha_t)(1 - c) z + alpha_s c x,
        variance sigma_s^2 c ("beta tilde").
        """
        gamma_t, gamma_s = expand(gamma_t, z), expand(gamma_s, z)
        alpha_t, _ = self.alpha_sigma(gamma_t)
        alpha_s, sigma_s = self.alpha_sigma(gamma_s)
        c = -torch.expm1(gamma_s - gamma_t)
        return Normal(alpha_s * (torch.exp(gamma_s - gamma_t) / alpha_t * z + c * x), sigma_s * c.sqrt())

    def prior_kl(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Return KL(q(z_1 | x) || prior) in nats, (B,), against the process's own Gaussian prior."""
        gamma = expand(gamma, x)
        alpha, sigma = self.alpha_sigma(gamma)
        ratio = (sigma / self.prior_std(gamma)) ** 2
        signal = (alpha / self.prior_std(gamma) * x).square()
        return 0.5 * (signal + ratio - ratio.log() - 1).flatten(1).sum(1)

    def prior_std(self, gamma: Tensor) -> Tensor:
        """Return standard deviation of p(z_1), the zero-mean Gaussian from which sampling starts."""
        return torch.ones_like(gamma)


class VariancePreserving(Process):
    """alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma); prior N(0, I) (tutorial eq. 31)."""

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


class VarianceExploding(Process):
    """alpha = 1, sigma = e^{gamma / 2}; prior N(0, sigma_1^2 I) (Song & Ermon 2019; Song et al. 2021, VE)."""

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gamma), torch.exp(0.5 * gamma)

    def prior_std(self, gamma: Tensor) -> Tensor:
        return torch.exp(0.5 * gamma)


class SubVariancePreserving(Process):
    r"""sigma = 1 - alpha^2, below VP's at every alpha; prior N(0, I) (Song et al. 2021, eq. 29).

    With u = sigma / alpha = e^{gamma / 2} the positive root is alpha = 2 / (u + sqrt(u^2 + 4)), sigma = u
    alpha: no difference of near-equal numbers at either end.
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.exp(0.5 * gamma)
        alpha = 2 / (ratio + torch.hypot(ratio, torch.full_like(ratio, 2.0)))
        return alpha, ratio * alpha


@declared("process")
class Preconditioned(Process):
    """z = c_in (x + s eps), s = e^{gamma / 2}: EDM's input to the network (Karras et al. 2022, table 1).

    c_in = 1 / sqrt(s^2 + sd^2), sd the data's standard deviation ``sigma_data``; so z has unit variance at
    every level. Prior N(0, sigma_1^2 I), their N(0, s_max^2 I) in these coordinates. With sd = 1 alpha and
    sigma are those of ``VariancePreserving``.
    """

    def __init__(self, sigma_data: Positive = 0.5):
        self.sigma_data = float(sigma_data)

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        scaled = gamma - 2 * math.log(self.sigma_data)  # gamma of data scaled to unit variance
        return torch.sigmoid(-scaled).sqrt() / self.sigma_data, torch.sigmoid(scaled).sqrt()

    def prior_std(self, gamma: Tensor) -> Tensor:
        return self.alpha_sigma(gamma)[1]


class Rectified(Process):
    """The straight path: alpha = sigmoid(-gamma / 2), sigma = sigmoid(gamma / 2) = 1 - alpha; prior N(0, I).

    Liu et al. 2023 (rectified flow), Lipman et al. 2023 (flow matching, their time running the other way).
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(-0.5 * gamma), torch.sigmoid(0.5 * gamma)
