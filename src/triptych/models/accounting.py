"""The one accounting: sums of nats and counts over exactly the data set, on any number of processes."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.process import BITS

BINNED = ("n", "w", "we", "ww", "wwe", "wwee")  # sums over draws of a noise level: weight w, error e
TERMS = ("", "_prior", "_reconstruction", "_diffusion")


@dataclass
class Account:
    """What an accounting says of a split.

    Attributes:
        figures: {"bpd": {"mean", "stderr", "n"}, "bpd_prior": ..., ...}; empty before the first item.
        unit: the name of the bound among them.
        noise_levels: the epsilon error by noise level: "gamma", "epsilon_mse", "stderr".
        estimator: "mean" (nats an item) and "variance" (nats^2) of one draw of the diffusion term.
        per_item: indices (n,) and rows (n, 5): total, prior, reconstruction, diffusion, draw variance; None
            where items were not kept apart.
    """

    figures: dict[str, dict[str, Any]]
    unit: str
    noise_levels: dict[str, list[Any]] = field(default_factory=dict)
    estimator: dict[str, float] = field(default_factory=dict)
    per_item: tuple[Tensor, Tensor] | None = None


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
    noise: Tensor
    rows: Tensor

    def __init__(self, dims: int, discrete: bool, edges: Tensor | None = None, extras: tuple[str, ...] = ()):
        super().__init__()
        self.dims = dims
        self.unit = "bpd" if discrete else "nats_per_dim"
        self.scale = (BITS if discrete else 1.0) / dims
        self.edges, self.extras = edges, extras
        bins = 0 if edges is None else len(edges) - 1
        sizes = {"items": 1, "sums": 4, "squares": 4, "gaps": 3, "draws": 3, "noise": 2}
        sizes |= {f"bin_{name}": bins for name in BINNED} | {f"extra_{name}": 3 for name in extras}
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(0, 6, dtype=torch.float64), dist_reduce_fx="sum")

    def expect(self, items: int) -> None:
        """Start over, and keep each of ``items`` items apart: those of indices below that number.

        Each process fills its own items' rows of one table, so that their sum over processes is exact.
        """
        self.reset()
        self.rows = torch.zeros(items, 6, dtype=torch.float64, device=self.items.device)

    def update(
        self,
        elbo: BoundTerms,
        exact: Tensor | None = None,
        gap: Tensor | None = None,
        extra: dict[str, Tensor] | None = None,
        index: Tensor | None = None,
        variance: Tensor | None = None,
    ) -> None:
        """Count items whose terms are (B,) nats, each already averaged over its draws; exact: -log p, nats.

        ``gap``: an estimate of bound - exact, nats (B,), where there is a better one than their difference.
        ``extra``: nats (B,) by name; items whose figure is NaN are not counted in it.
        ``index``: places in the data set, (B,), for the table that was ``expect``ed. ``variance``: of each
        item's total due to its draws, nats^2 (B,), where it is known.
        """
        rows = torch.stack([elbo.total, *elbo]).double() * self.scale
        self.items += rows.shape[1]
        self.sums += rows.sum(1)
        self.squares += rows.square().sum(1)
        noise = torch.full_like(rows[0], math.nan)
        if variance is not None:
            noise = variance.to(noise) * self.scale**2
            self.noise += torch.stack([noise.new_tensor(float(len(noise))), noise.sum()])
        if index is not None and len(self.rows):
            filled = torch.cat([torch.ones_like(rows[:1]), rows, noise[None]])
            self.rows.index_add_(0, index.to(self.rows.device), filled.T)
        if gap is not None:
            self.gaps += sums_of(gap.double() * self.scale)
        elif exact is not None:
            self.gaps += sums_of(rows[0] - exact.double() * self.scale)
        for name, value in (extra or {}).items():
            known = ~value.isnan()  # not used as an index, which would wait for the device
            counted = torch.where(known, value.double() * self.scale, 0.0)
            sums = torch.stack([known.sum().double(), counted.sum(), counted.square().sum()])
            getattr(self, f"extra_{name}").add_(sums)

    def update_levels(
        self,
        gamma: Tensor,
        squared_error: Tensor,
        nats: Tensor,
        weight: Tensor | None = None,
        estimate: Tensor | None = None,
    ) -> None:
        """Count one draw an item: squared epsilon errors (B,), summed over dimensions, at their gammas (B,).

        ``nats``: what each draw says of the diffusion term, (B,). ``weight``: 1 / density of its time, where
        times are not uniform; ``estimate``: what was counted for the draw, where that is not nats.
        """
        weight = torch.ones_like(nats, dtype=torch.float64) if weight is None else weight.to(nats.device)
        estimate = nats if estimate is None else estimate
        second = (weight * nats.double().square()).sum()
        self.draws += torch.stack([second.new_tensor(float(len(nats))), estimate.double().sum(), second])
        if self.edges is None:
            return
        bins = len(self.edges) - 1
        which = (torch.bucketize(gamma, self.edges.to(gamma)) - 1).clamp(0, bins - 1)
        error = squared_error.double() / self.dims
        one, square = torch.ones_like(error), weight.square()
        values = (one, weight, weight * error, square, square * error, square * error.square())
        for name, value in zip(BINNED, values, strict=True):
            getattr(self, f"bin_{name}").index_add_(0, which, value)

    def compute(self) -> Account:
        """Compute all figures at once, while the sums of all processes are at hand."""
        return Account(self._figures(), self.unit, self._levels(), self._estimator(), self._per_item())

    def _figures(self) -> dict[str, dict[str, Any]]:
        n = int(self.items.item())
        if not n:
            return {}
        figures = {
            self.unit + term: figure_of(n, s, q)
            for term, s, q in zip(TERMS, self.sums.tolist(), self.squares.tolist(), strict=True)
        }
        counted, noise = self.noise.tolist()
        if counted == n and math.isfinite(noise):
            figures[self.unit]["draw_stderr"] = math.sqrt(noise) / n
        for key, sums in (
            ("gap", self.gaps),
            *((f"{self.unit}_{n}", getattr(self, f"extra_{n}")) for n in self.extras),
        ):
            if sums[0] > 0:
                figures[key] = figure_of(*sums.tolist())
        return figures

    def _per_item(self) -> tuple[Tensor, Tensor] | None:
        """Return indices (n,) and rows (n, 5): total, prior, reconstruction, diffusion, draw variance."""
        if not len(self.rows):
            return None
        index = self.rows[:, 0].nonzero().squeeze(1).cpu()
        return index, self.rows.cpu()[index, 1:]

    def _estimator(self) -> dict[str, float]:
        """Return mean (nats an item), variance (nats^2) of one draw of the diffusion term, as in training."""
        n, total, squares = self.draws.tolist()
        return {"mean": total / n, "variance": max(squares / n - (total / n) ** 2, 0.0)} if n else {}

    def _levels(self) -> dict[str, list[Any]]:
        if self.edges is None:
            return {}
        centres = (0.5 * (self.edges[1:] + self.edges[:-1])).tolist()
        bins = zip(centres, *(getattr(self, f"bin_{name}").tolist() for name in BINNED), strict=True)
        rows = [(g, *_weighted(n, *sums)) for g, n, *sums in bins if n]
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        return dict(zip(("gamma", "epsilon_mse", "stderr"), map(list, columns), strict=True))


def sums_of(value: Tensor) -> Tensor:
    """Return count, sum and sum of squares, (3,) double."""
    return torch.stack([value.new_tensor(float(len(value))), value.sum(), value.square().sum()])


def _weighted(n: float, w: float, we: float, ww: float, wwe: float, wwee: float) -> tuple[float, float]:
    """Return mean sum w e / sum w and its standard error, by the spread of w (e - mean); plain for w = 1."""
    mean = we / w
    spread = max(wwee - 2 * mean * wwe + mean**2 * ww, 0.0) * n / max(n - 1, 1)
    return mean, math.sqrt(spread) / w


def figure_of(n: float, total: float, squares: float) -> dict[str, Any]:
    """Return mean, standard error of the mean and count from sums."""
    mean = total / n
    variance = max(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
    return {"mean": mean, "stderr": math.sqrt(variance / n) if n > 1 else math.nan, "n": int(n)}
