r"""From levels to densities: what a density must be charged before it speaks of a level on a grid, in nats.

Spacing D = 2 / (K - 1) between the K levels on [-1, 1].

uniform   x + D (n - 1/2), n uniform: P(x) >= exp E log(p(x + ...) D^d), so -log P(x) <= E[-log p] - d log D
          (3 bits a dimension for K = 17 and 6.99 for K = 256; for data on [0, 1] with K = 256 cells it
          would be 8).
lossless  z_0 ~ q(z_0 | x): -log P(x) <= E[-log p(z_0) + log q(z_0 | x) - log p(x | z_0)], and E log q is
          minus the entropy d/2 log(2 pi e s_0^2) (VDM, Kingma et al. 2021; no noise that the model was not
          trained on).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Dequantised(NamedTuple):
    """Where the ODE starts: u (B, *event) float64 at gamma_0, in the variance-preserving coordinate.

    ``density + nats`` is what to add to -log p(u): the change of scale from u to x, and the dequantisation.
    """

    u: Tensor
    density: float
    nats: float


def dequantise(kind: str, x: Tensor, gamma: float, noise: Tensor, levels: int | None = None) -> Dequantised:
    """Return the point at gamma_0 for x (B, *event), and its account.

    "none" and "uniform" put a data point itself at u = a_0 x, so -log p(x) = -log p(u) - d log a_0: the
    model's density of data is its density at gamma_0. ``noise`` as ``Likelihood`` draws it.
    """
    level = torch.tensor(gamma, dtype=torch.float64)
    a, s = torch.sigmoid(-level).sqrt().item(), torch.sigmoid(level).sqrt().item()
    dims = x[0].numel()
    data = x.double()
    if kind == "lossless":
        return Dequantised(a * data + s * noise, 0.0, -0.5 * dims * math.log(2 * math.pi * math.e * s**2))
    spacing = 2 / (levels - 1) if kind == "uniform" and levels else None
    if spacing is None:
        return Dequantised(a * data, -dims * math.log(a), 0.0)
    return Dequantised(a * (data + spacing * (noise - 0.5)), -dims * math.log(a), -dims * math.log(spacing))
