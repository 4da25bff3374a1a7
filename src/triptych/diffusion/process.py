r"""Forward processes: alpha and sigma as functions of gamma, and the Gaussians that follow.

``q(z_t | x) = N(alpha x, sigma^2 I)``; every formula below is written for a general pair ``(alpha,
sigma)`` with ``gamma = log(sigma^2 / alpha^2)``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.declare import Positive, declared

from .normal import Normal

BITS = 1 / math.log(2)  # bits in a nat


def expand_like(value: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) or () to broadcast against ``like`` (B, *event)."""
    return (
        value if value.ndim == 0 else value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
    )


class Process(ABC):
    """Base class of processes: a family (alpha, sigma) indexed by gamma.

    Subclasses implement ``alpha_sigma``.
    """

    def __str__(self) -> str:
        """Return the name and parameters; processes with equal strings are the same."""
        numbers = ", ".join(f"{key}={value}" for key, value in vars(self).items())
        return type(self).__name__ + (f"({numbers})" if numbers else "")

    @abstractmethod
    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales of signal and noise at gamma, of the same shape as gamma."""

    def scales(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``alpha_sigma(gamma)``; a gamma of this process's ``grid`` carries it already."""
        known: tuple[Process, tuple[Tensor, Tensor]] | None = getattr(gamma, "known_scales", None)
        if known is None or known[0] is not self:
            return self.alpha_sigma(gamma)
        return known[1]

    def grid(self, gammas: Tensor) -> Sequence[Tensor]:
        """Return the gammas (n,) one by one; their scales are computed here, for all at once.

        Each carries its scales as an attribute, so that guidance passes them on to the denoiser.
        """
        # A CPU's vector instructions round differently. They start at 16 numbers; in parts of 15
        # the scales equal those of a single gamma to the last digit.
        scales = [self.alpha_sigma(part) for part in gammas.split(15)]
        alphas, sigmas = (torch.cat(parts).unbind() for parts in zip(*scales, strict=True))
        levels = gammas.unbind()
        for level, alpha, sigma in zip(levels, alphas, sigmas, strict=True):
            level.known_scales = self, (alpha, sigma)  # type: ignore[attr-defined]  # a new name
        return levels

    def diffuse(self, x: Tensor, gamma: Tensor, eps: Tensor) -> Tensor:
        """Return z = alpha x + sigma eps (Luo 2022, eq. 69).

        ``x``, ``eps``: (B, *event); ``gamma``: (B,) or ().
        """
        alpha, sigma = self.alpha_sigma(expand_like(gamma, x))
        return alpha * x + sigma * eps

    def posterior(self, z: Tensor, x: Tensor, gamma_t: Tensor, gamma_s: Tensor) -> Normal:
        """Return the posterior q(z_s | z_t, x) for s < t (Luo 2022, eq. 84; VDM eq. 25 onwards).

        With c = 1 - exp(gamma_s - gamma_t) its mean is (alpha_s / alpha_t)(1 - c) z + alpha_s c x
        and its variance sigma_s^2 c ("beta tilde"). It stays exact for levels that are close
        together.
        """
        gamma_t, gamma_s = expand_like(gamma_t, z), expand_like(gamma_s, z)
        alpha_t, _ = self.alpha_sigma(gamma_t)
        alpha_s, sigma_s = self.alpha_sigma(gamma_s)
        c = -torch.expm1(gamma_s - gamma_t)
        return Normal(
            alpha_s * (torch.exp(gamma_s - gamma_t) / alpha_t * z + c * x), sigma_s * c.sqrt()
        )

    def prior_kl(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Return KL(q(z_1 | x) || prior) for the process's own Gaussian prior, nats (B,)."""
        gamma = expand_like(gamma, x)
        alpha, sigma = self.alpha_sigma(gamma)
        ratio = (sigma / self.prior_std(gamma)) ** 2
        signal = (alpha / self.prior_std(gamma) * x).square()
        return 0.5 * (signal + ratio - ratio.log() - 1).flatten(1).sum(1)

    def prior_std(self, gamma: Tensor) -> Tensor:
        """Return the standard deviation of the prior p(z_1), a Gaussian with mean zero."""
        return torch.ones_like(gamma)


class VariancePreserving(Process):
    """The variance-preserving process with prior N(0, I) (Luo 2022, eq. 31).

    alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma).
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


class VarianceExploding(Process):
    """The variance-exploding process: alpha = 1, sigma = e^{gamma / 2}.

    Its prior is N(0, sigma_1^2 I) (Song & Ermon 2019; Song et al. 2021, VE).
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(gamma), torch.exp(0.5 * gamma)

    def prior_std(self, gamma: Tensor) -> Tensor:
        return torch.exp(0.5 * gamma)


class SubVariancePreserving(Process):
    r"""The sub-VP process: sigma = 1 - alpha^2, prior N(0, I) (Song et al. 2021, eq. 29).

    sigma is below that of VP at every alpha. With u = sigma / alpha = e^{gamma / 2} the positive
    root is alpha = 2 / (u + sqrt(u^2 + 4)), sigma = u alpha, which needs no difference of
    near-equal numbers at either end.
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.exp(0.5 * gamma)
        alpha = 2 / (ratio + torch.hypot(ratio, torch.full_like(ratio, 2.0)))
        return alpha, ratio * alpha


@declared("process")
class Preconditioned(Process):
    """The process whose latent z is EDM's input to the network (Karras et al. 2022, table 1).

    z = c_in (x + s eps) with s = e^{gamma / 2} and c_in = 1 / sqrt(s^2 + sd^2), where sd is the
    data's standard deviation ``sigma_data``; so z has unit variance at every level. The prior is
    N(0, sigma_1^2 I), which is EDM's N(0, s_max^2 I) in these coordinates. With sd = 1, alpha and
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
    """The straight path: alpha = sigmoid(-gamma / 2) and sigma = sigmoid(gamma / 2) = 1 - alpha.

    The prior is N(0, I). Liu et al. 2023 (rectified flow), Lipman et al. 2023 (flow matching, with
    time in the opposite direction).
    """

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(-0.5 * gamma), torch.sigmoid(0.5 * gamma)
