r"""Two simple denoisers that serve as control variates for a network's bound.

They know only the covariance of the data, or the histogram of levels in each dimension. Their error
at (x, gamma, eps) is known, its mean over eps is known too, and a network's error correlates with
it.

- linear: E[x | z] if x were Gaussian with the data's mean and covariance V diag(L) V^T. With v =
  a^2 L + s^2, c = V^T (x - mean) and e = V^T eps, (eps_hat - eps)_k = a s c_k / v_k - a^2 L_k e_k /
  v_k. Its mean square is sum_k (a s c_k / v_k)^2 + (a^2 L_k / v_k)^2.
- levels: E[x | z] if dimensions were independent, each with its own histogram over the data's K
  levels. The squared error is a sum over dimensions. Its mean for each dimension, level and gamma
  is an integral over one eps, which is tabulated by the trapezoid rule (its error falls
  exponentially) at ``GRID`` gammas. Between these gammas, the value and the mean are both
  interpolated linearly from the two neighbours, so the mean remains exact for the value.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import level_centres
from .process import Process

FULL = 1024  # maximum number of dimensions for a full covariance; otherwise its diagonal is used
# Maximum of dimensions * levels^2 for which histograms are used; beyond it they are too slow.
LARGEST = 2**16
# Maximum number of items. NUMBERS limits items * dimensions, and thereby the memory.
MOST = 10_000
NUMBERS = 2**24
GRID = 48  # number of gammas in the table
NODES = torch.linspace(-7.0, 7.0, 113)  # values of eps at which the table's integrals are summed
SMOOTHING = 1.0  # counts spread over the K levels of each histogram


def n_fit_items(dims: int) -> int:
    """Return how many items with ``dims`` dimensions a ``BaselineErrors`` is fitted on."""
    return max(2, min(MOST, NUMBERS // dims))


class Errors(NamedTuple):
    """Squared epsilon errors of F denoisers, and their means over eps: (F, B) each.

    Errors are summed over dimensions.
    """

    value: Tensor
    mean: Tensor


class BaselineErrors:
    """The errors of the two reference denoisers, fitted on training items x (n, *event).

    ``levels``: the number K of the data's levels, None for a density. ``process`` and the
    schedule's endpoints ``low`` and ``high`` define the levels of noise at which it will be used.
    """

    def __init__(
        self, x: Tensor, process: Process, low: float, high: float, levels: int | None = None
    ):
        x = x[: n_fit_items(x[0].numel())]
        rows = x.flatten(1).double()
        d = rows.shape[1]
        self.process = process
        self.centre = rows.mean(0)
        self.basis: Tensor | None = None
        if len(rows) < 2:
            self.spread = torch.zeros(d, dtype=torch.float64)
        elif d <= FULL:
            self.spread, self.basis = torch.linalg.eigh(torch.cov(rows.T).reshape(d, d))
        else:
            self.spread = rows.var(0)
        self.spread = self.spread.clamp(min=0)
        self.centres: Tensor | None = None
        self.log_p: Tensor | None = None
        if levels is not None and d * levels**2 <= LARGEST:
            self.centres = level_centres(levels)
            self.log_p = histogram([x], levels, SMOOTHING).log().float()
            self.gammas = low + (torch.arange(GRID) + 0.5) / GRID * (high - low)
            self.table = torch.stack([self._tabulate(gamma) for gamma in self.gammas])

    def to(self, device: torch.device) -> "BaselineErrors":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def errors(self, x: Tensor, gamma: Tensor, eps: Tensor) -> Errors:
        """Return the references' errors at x, eps (B, *event) and gamma (B,), in double."""
        x, eps = x.flatten(1), eps.flatten(1)
        errors = [self._linear(x.double(), gamma, eps.double())]
        if self.log_p is not None:
            errors.append(self._levels(x, gamma, eps))
        return Errors(*map(torch.stack, zip(*errors, strict=True)))

    def _linear(self, x: Tensor, gamma: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (a.double().unsqueeze(1) for a in self.process.alpha_sigma(gamma))
        offset, spread = x - self.centre, self.spread
        if self.basis is not None:
            offset, eps = offset @ self.basis, eps @ self.basis
        v = alpha.square() * spread + sigma.square()
        of_x, of_eps = alpha * sigma / v * offset, alpha.square() * spread / v
        return (of_x - of_eps * eps).square().sum(1), (of_x.square() + of_eps.square()).sum(1)

    def _levels(self, x: Tensor, gamma: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        assert self.centres is not None
        place = ((gamma - self.gammas[0]) / (self.gammas[1] - self.gammas[0])).clamp(0, GRID - 1)
        below = place.floor().clamp(max=GRID - 2).long()
        share = (place - below).double()
        value = mean = torch.zeros_like(share)
        k = ((x + 1) * ((len(self.centres) - 1) / 2)).round().long().unsqueeze(2)
        for at, weight in ((below, 1 - share), (below + 1, share)):
            alpha, sigma = self.process.alpha_sigma(self.gammas[at])
            away = (alpha / sigma)[:, None, None] * (x.unsqueeze(2) - self.centres)
            value = value + weight * self._squared_error(away, eps).double().sum(1)
            mean = mean + weight * self.table[at].gather(2, k).double().sum((1, 2))
        return value, mean

    def _squared_error(self, away: Tensor, eps: Tensor) -> Tensor:
        """Return (eps_hat - eps)^2 for each dimension, (..., d).

        ``away``: alpha / sigma (x - c_k), (..., d, K).
        """
        assert self.log_p is not None
        p = torch.softmax(self.log_p - 0.5 * (away + eps.unsqueeze(-1)).square(), -1)
        return (p * away).sum(-1).square()

    # Means of ``_squared_error`` over eps, for each dimension and level of x: (d, K).
    def _tabulate(self, gamma: Tensor) -> Tensor:
        assert self.log_p is not None and self.centres is not None
        alpha, sigma = self.process.alpha_sigma(gamma)
        weight = torch.exp(-0.5 * NODES.double().square()).float()
        p = self.log_p.exp().T
        columns = []
        for centre in self.centres:
            away = alpha / sigma * (centre - self.centres)
            # p(k | eps) up to a factor, with the prior p of each dimension: (nodes, K, d). Do not
            # use a matrix product, whose last digits may differ between calls.
            joint = (-0.5 * (away + NODES[:, None]).square()).softmax(-1)[..., None] * p
            error = ((joint * away[:, None]).sum(1) / joint.sum(1)).square()
            columns.append((weight[:, None] / weight.sum() * error).sum(0))
        return torch.stack(columns, 1)


def histogram(parts: Iterable[Tensor], levels: int, smoothing: float) -> Tensor:
    """Estimate the probability of each level in each dimension, (d, K) in double.

    p_jk = (n_jk + smoothing / K) / (n + smoothing), from counts of items x (n_i, *event) of all
    parts on the K levels of [-1, 1].
    """
    n, counts = 0, torch.zeros(0)
    for x in parts:
        k = ((x.flatten(1) + 1) * ((levels - 1) / 2)).round().long()
        if not n:
            counts = torch.zeros(k.shape[1], levels, dtype=torch.float64)
        counts.scatter_add_(1, k.T, torch.ones(k.T.shape, dtype=torch.float64))
        n += len(k)
    return (counts + smoothing / levels) / (n + smoothing)
