"""The one accounting: sums of nats and counts over exactly the data set, on any number of processes."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.diffusion.bound import Elbo
from triptych.diffusion.process import BITS

TERMS = ("", "_prior", "_reconstruction", "_diffusion")


class Accounting(Metric):
    """Means and standard errors of a bound and its terms per dimension, and epsilon error by noise level.

    Args:
        dims: dimensions of one item.
        discrete: bits per dimension ("bpd") if True, else nats per dimension ("nats_per_dim").
        edges: of the noise-level bins, increasing gammas, or None.
        extras: names of further figures; each counts the items it is given.

    Sums are kept in double and reduced by addition, so batch size and processes change nothing but rounding.
    """

    full_state_update = False
    items: Tensor
    sums: Tensor
    squares: Tensor
    gaps: Tensor
    draws: Tensor
    bin_0: Tensor
    bin_1: Tensor
    bin_2: Tensor

    def __init__(self, dims: int, discrete: bool, edges: Tensor | None = None, extras: tuple[str, ...] = ()):
        super().__init__()
        self.dims = dims
        self.unit = "bpd" if discrete else "nats_per_dim"
        self.scale = (BITS if discrete else 1.0) / dims
        self.edges, self.extras = edges, extras
        bins = 0 if edges is None else len(edges) - 1
        sizes = {"items": 1, "sums": 4, "squares": 4, "gaps": 3, **{f"bin_{m}": bins for m in range(3)}}
        sizes["draws"] = 3
        for name, size in (sizes | {f"extra_{name}": 3 for name in extras}).items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        elbo: Elbo,
        exact: Tensor | None = None,
        gap: Tensor | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        """Count items whose terms are (B,) nats, each already averaged over its draws; exact: -log p, nats.

        ``gap``: an estimate of bound - exact, nats (B,), where there is a better one than their difference.
        ``extra``: nats (B,) by name; items whose figure is NaN are not counted in it.
        """
        rows = (
            torch.stack([elbo.total, elbo.prior, elbo.reconstruction, elbo.diffusion]).double() * self.scale
        )
        self.items += rows.shape[1]
        self.sums += rows.sum(1)
        self.squares += rows.square().sum(1)
        if gap is not None:
            self.gaps += _sums(gap.double() * self.scale)
        elif exact is not None:
            self.gaps += _sums(rows[0] - exact.double() * self.scale)
        for name, value in (extra or {}).items():
            getattr(self, f"extra_{name}").add_(_sums(value[~value.isnan()].double() * self.scale))

    def update_levels(self, gamma: Tensor, squared_error: Tensor, nats: Tensor) -> None:
        """Count one draw an item: squared epsilon errors (B,), summed over dimensions, at their gammas (B,).

        ``nats``: what each draw says of the diffusion term, (B,).
        """
        self.draws += _sums(nats.double())
        if self.edges is None:
            return
        bins = len(self.edges) - 1
        which = (torch.bucketize(gamma, self.edges.to(gamma)) - 1).clamp(0, bins - 1)
        error = squared_error.double() / self.dims
        for state, value in (
            (self.bin_0, torch.ones_like(error)),
            (self.bin_1, error),
            (self.bin_2, error.square()),
        ):
            state.index_add_(0, which, value)

    def compute(self) -> dict[str, dict]:
        """{"bpd": {"mean", "stderr", "n"}, "bpd_prior": ..., ...}; empty before the first item."""
        self.noise_levels = self._levels()  # here, while the sums of all processes are at hand
        self.estimator = self._estimator()
        n = int(self.items.item())
        if not n:
            return {}
        found = {
            self.unit + term: _figure(n, s, q)
            for term, s, q in zip(TERMS, self.sums.tolist(), self.squares.tolist(), strict=True)
        }
        for key, sums in (
            ("gap", self.gaps),
            *((f"{self.unit}_{n}", getattr(self, f"extra_{n}")) for n in self.extras),
        ):
            if sums[0] > 0:
                count, s, q = sums.tolist()
                found[key] = _figure(int(count), s, q)
        return found

    def _estimator(self) -> dict[str, float]:
        """Mean (nats an item) and variance (nats^2) of one draw of the diffusion term, as in training."""
        n, total, squares = self.draws.tolist()
        return {"mean": total / n, "variance": max(squares / n - (total / n) ** 2, 0.0)} if n else {}

    def _levels(self) -> dict[str, list]:
        if self.edges is None:
            return {}
        centres = (0.5 * (self.edges[1:] + self.edges[:-1])).tolist()
        rows = [
            (g, _figure(int(n), s, q))
            for g, n, s, q in zip(
                centres, self.bin_0.tolist(), self.bin_1.tolist(), self.bin_2.tolist(), strict=True
            )
            if n
        ]
        return {
            "gamma": [g for g, _ in rows],
            "epsilon_mse": [f["mean"] for _, f in rows],
            "stderr": [f["stderr"] for _, f in rows],
        }


def _sums(value: Tensor) -> Tensor:
    """Count, sum and sum of squares, (3,) double."""
    return torch.stack([value.new_tensor(float(len(value))), value.sum(), value.square().sum()])


def _figure(n: int, total: float, squares: float) -> dict:
    """Mean, standard error of the mean and count from sums."""
    mean = total / n
    variance = max(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
    return {"mean": mean, "stderr": math.sqrt(variance / n), "n": n}
