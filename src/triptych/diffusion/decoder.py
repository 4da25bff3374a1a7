r"""Decoders p(x | z_0): the reconstruction term of the bound.

``Categorical`` and ``DiscretisedGaussian`` give a probability for data on a grid of levels;
``GaussianDensity`` gives a density for continuous data. Results are nats, (B,); larger is worse.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .betas import Betas
from .condition import Condition
from .denoiser import level_centres
from .process import expand_like
from .protocol import AnyDenoiser
from .schedule import Schedule

LOW = -20.0  # below this gamma, rounding in float32 is over 0.1% of the noise in z_0
# Maximum number of logits in memory at once. One colour image of 64 x 64 has 256 x 12288.
LOGITS = 2**23


class Decoder(ABC):
    """Base class of decoders: ``nats`` returns -log p(x | z), (B,).

    Attributes:
        of_levels: whether it gives a probability of levels; ``GaussianDensity`` is for data with a
            density.
        named: the classes by their short names.
    """

    named: ClassVar[Mapping[str, type["Decoder"]]]
    of_levels = False

    @abstractmethod
    def nats(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        z: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        """Return -log p(x | z), nats (B,), for x, z (B, *event) and gamma (B,) or ()."""

    def draw(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        eps: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        return self.nats(denoiser, x, denoiser.process.diffuse(x, gamma, eps), gamma, condition)


class Categorical(Decoder):
    """VDM's decoder (Kingma et al. 2021, eq. 8): a softmax over the data's K levels.

    log p(x = c_k | z_0) = log softmax_k(-1/2 e^{-gamma_0} (z_0 / alpha_0 - c_k)^2) in each
    dimension, for any K.
    """

    of_levels = True

    def __init__(self, levels: int):
        self.levels = levels

    def nats(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        z: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        alpha, _ = denoiser.process.alpha_sigma(expand_like(gamma, z))
        precision = torch.exp(-expand_like(gamma, z)).expand(len(z), *(1,) * (z.ndim - 1))
        rows = max(1, LOGITS // (z[0].numel() * self.levels))
        parts = zip(*(whole.split(rows) for whole in (x, z / alpha, precision)), strict=True)
        return torch.cat([self._nats(*part) for part in parts])

    def _nats(self, x: Tensor, centre: Tensor, precision: Tensor) -> Tensor:
        centres = level_centres(self.levels, centre.device).to(centre)
        logits = -0.5 * precision.unsqueeze(-1) * (centre.unsqueeze(-1) - centres) ** 2
        k = ((x + 1) * ((self.levels - 1) / 2)).round().long().unsqueeze(-1)
        return -torch.log_softmax(logits, -1).gather(-1, k).flatten(1).sum(1)


class DiscretisedGaussian(Decoder):
    """DDPM's decoder (Ho et al. 2020, eq. 13): a Gaussian integrated over the cell of x's level.

    log [Phi((x + h - mean) / s) - Phi((x - h - mean) / s)] with h half the spacing of levels, s =
    sigma_0 / alpha_0 and the mean denoiser(z_0).x0; the outer cells of the grid are open. Under
    ``schedule=betas`` s^2 is beta tilde_2 = beta_2 (1 - abar_1) / (1 - abar_2), as in the code of
    Ho et al.
    """

    of_levels = True

    def __init__(self, levels: int, schedule: Schedule | None = None):
        self.half, self.share = 1.0 / (levels - 1), 0.0
        if isinstance(schedule, Betas):
            self.share = (-torch.expm1(schedule.table[0] - schedule.table[1])).sqrt().item()

    def nats(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        z: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        alpha, sigma = denoiser.process.alpha_sigma(expand_like(gamma, z))
        offset = x - denoiser(z, gamma, condition).x0
        precision = 1 / (sigma * self.share) if self.share else alpha / sigma
        # Use the symmetry to move the interval to the lower tail, where log_ndtr is accurate.
        sign = torch.where(offset > 0, -1.0, 1.0)
        upper = (sign * offset + self.half) * precision
        lower = (sign * offset - self.half) * precision
        first, last = x < -1 + self.half, x > 1 - self.half
        # The outer cells of the grid extend to infinity, on the side that ``sign`` has chosen.
        upper = torch.where((last & (sign > 0)) | (first & (sign < 0)), torch.inf, upper)
        lower = torch.where((first & (sign > 0)) | (last & (sign < 0)), -torch.inf, lower)
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        log_prob: Tensor = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
        # For cells much narrower than the noise this difference rounds to 0; use the density there.
        width, middle = 2 * self.half * precision, (offset * precision).square()
        density = (
            torch.log(width) - 0.5 * (math.log(2 * math.pi) + middle) + width**2 * (middle - 1) / 24
        )
        narrow = (width < 0.01) & (width**2 * middle < 0.01) & ~first & ~last
        log_prob = torch.where(narrow, density, log_prob)
        return -log_prob.flatten(1).sum(1)


class GaussianDensity(Decoder):
    """Decoder for continuous data: the density N(x; z_0 / alpha_0, e^{gamma_0} I).

    Because (x - z_0 / alpha_0)^2 e^{-gamma_0} = eps^2, a draw can be computed without z_0. This is
    exact where float32 would lose eps in z_0 (gamma below ``LOW``).
    """

    def nats(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        z: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        alpha, _ = denoiser.process.alpha_sigma(expand_like(gamma, z))
        variance = torch.exp(expand_like(gamma, z))
        return self._density((x - z / alpha).square() / variance, variance)

    def draw(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        eps: Tensor,
        gamma: Tensor,
        condition: Condition | None = None,
    ) -> Tensor:
        exact = self._density(eps.square(), torch.exp(expand_like(gamma, x)).expand_as(x))
        return torch.where(gamma < LOW, exact, super().draw(denoiser, x, eps, gamma, condition))

    @staticmethod
    def _density(square: Tensor, variance: Tensor) -> Tensor:
        return 0.5 * (square + torch.log(2 * torch.pi * variance)).flatten(1).sum(1)


Decoder.named = {
    "categorical": Categorical,
    "discretised_gaussian": DiscretisedGaussian,
    "gaussian_density": GaussianDensity,
}
