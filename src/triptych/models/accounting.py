"""Average the bound and other metrics over the items of a split, on any number of processes.

The metrics' states are sums and counts to which each item contributes once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.control import DrawError
from triptych.diffusion.process import BITS
from triptych.errors import UserError

# Number of sums in each noise-level bin: n, w, w e, w^2, w^2 e and w^2 e^2 of draws with weight w
# and error e.
SUMS_PER_BIN = 6
# Suffixes of the names of the bound and its terms.
TERMS = ("", "_prior", "_reconstruction", "_diffusion")


@dataclass
class Account:
    """The bound and other metrics of a split, averaged over its items.

    Attributes:
        figures: {"bpd": {"mean", "stderr", "n"}, "bpd_prior": ..., ...}; empty without items.
        unit: the bound's key in ``figures``: "bpd" (bits/dim) or "nats_per_dim".
        noise_levels: the epsilon error by noise level: "gamma", "epsilon_mse", "stderr".
        estimator: "mean" (nats per item) and "variance" (nats^2) of the estimate of the diffusion
            term from one draw.
        per_item: indices (n,) and rows (n, 5): total, prior, reconstruction, diffusion, draw
            variance; None if values of single items were not stored.
        groups: group number of each item in ``per_item``, (n,); None: items are independent.
    """

    figures: dict[str, dict[str, Any]]
    unit: str
    noise_levels: dict[str, list[Any]] = field(default_factory=dict)
    estimator: dict[str, float] = field(default_factory=dict)
    per_item: tuple[Tensor, Tensor] | None = None
    groups: Tensor | None = None


class ItemAverages(Metric):
    """Averages over items, with standard errors, of the metrics called ``names``.

    The first metric is the bound or, for a model without a bound, its main metric. Sums are kept in
    double and added over processes, so batch size and number of processes change only the rounding.
    """

    full_state_update = False
    edges: Tensor | None = None  # gammas at the edges of the noise-level bins
    sums: Tensor  # count, sum and sum of squares of each figure

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names, self.unit = names, names[0]
        self.add_state(
            "sums", torch.zeros(len(names), 3, dtype=torch.float64), dist_reduce_fx="sum"
        )

    def expect(self, items: int) -> None:
        """Prepare for the evaluation of a split with ``items`` items: reset the sums."""
        self.reset()

    def update(self, rows: Tensor) -> None:
        """Add values (F, B) of B items, for the first F metrics in ``names``."""
        number = torch.full_like(rows[:, :1], rows.shape[1]).squeeze(1)
        self.sums[: len(rows)] += torch.stack([number, rows.sum(1), rows.square().sum(1)], 1)

    def compute(self) -> Any:
        """Return the averages as an ``Account``."""
        return Account(self.figures(), self.unit)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return {name: {"mean", "stderr", "n"}} of each metric for which an item has a value."""
        sums = zip(self.names, self.sums.tolist(), strict=True)
        return {name: metric_from_sums(*row) for name, row in sums if row[0]}


class Accounting(ItemAverages):
    """Averages of a bound and its terms per dimension, and of the epsilon error by noise level.

    Args:
        dims: number of dimensions of one item.
        discrete: True: bits per dimension ("bpd"); False: nats per dimension ("nats_per_dim").
        edges: increasing gammas at the edges of the noise-level bins, or None.
        extras: names of metrics beside the bound, each averaged over the items that have a value.
    """

    draws: Tensor
    noise: Tensor
    bins: Tensor
    rows: Tensor
    paused = False  # true while a user metric evaluates the bound; those draws are not counted

    def __init__(
        self, dims: int, discrete: bool, edges: Tensor | None = None, extras: tuple[str, ...] = ()
    ):
        unit = "bpd" if discrete else "nats_per_dim"
        super().__init__(
            [*(unit + term for term in TERMS), "gap", *(f"{unit}_{name}" for name in extras)]
        )
        self.dims, self.edges = dims, edges
        self.scale = (BITS if discrete else 1.0) / dims
        bins = 0 if edges is None else SUMS_PER_BIN * (len(edges) - 1)
        for name, size in {"draws": (3,), "noise": (3,), "bins": (bins,), "rows": (0, 6)}.items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def expect(self, items: int) -> None:
        """Prepare for a split of ``items`` items: reset the sums, and make a table of the items.

        Each process fills the rows of its own items and leaves the others at 0, so that the sum of
        the tables over processes is exact.
        """
        self.reset()
        self.rows = torch.zeros(items, 6, dtype=torch.float64, device=self.sums.device)

    def update(  # type: ignore[override]  # its base takes rows
        self,
        elbo: BoundTerms,
        exact: Tensor | None = None,
        gap: Tensor | None = None,
        extra_metrics: Mapping[str, Tensor] = {},
        index: Tensor | None = None,
        error: DrawError | None = None,
    ) -> None:
        """Add B items; ``elbo`` has their bound terms, nats (B,), averaged over an item's draws.

        ``exact``: -log p, nats (B,).
        ``gap``: an estimate of bound - exact, nats (B,), if it is better than their difference.
        ``extra_metrics``: {name: nats (B,)}; items with NaN are left out of that metric.
        ``index``: positions in the split, (B,), of the items' rows in ``Account.per_item``.
        ``error``: the error of each item's total due to its random draws, if known.
        """
        rows = torch.stack([elbo.total, *elbo]).double() * self.scale
        super().update(rows)
        noise = torch.full_like(rows[0], math.nan)
        if error is not None:
            noise = error.variance.to(noise) * self.scale**2
            quadrature = error.quadrature.to(noise) * self.scale
            self.noise += torch.stack(
                [noise.new_tensor(float(len(noise))), noise.sum(), quadrature.sum()]
            )
        if index is not None and len(self.rows):
            filled = torch.cat([torch.ones_like(rows[:1]), rows, noise[None]])
            self.rows.index_add_(0, index.to(self.rows.device), filled.T)
        if exact is not None:
            difference = rows[0] - exact.double() * self.scale
            if gap is not None:
                difference = gap.double() * self.scale
            self.sums[len(TERMS)] += count_and_sums(difference)
        for name, value in extra_metrics.items():
            known = ~value.isnan()  # not used as an index, as indexing would wait for the device
            counted = torch.where(known, value.double() * self.scale, 0.0)
            sums = torch.stack([known.sum().double(), counted.sum(), counted.square().sum()])
            self.sums[self.names.index(f"{self.unit}_{name}")] += sums

    def update_levels(
        self,
        gamma: Tensor,
        squared_error: Tensor,
        nats: Tensor,
        weight: Tensor,
        estimate: Tensor,
    ) -> None:
        """Add the epsilon errors of B items to the bins of their noise levels ``gamma`` (B,).

        ``squared_error`` (B,) is the error of one random draw per item, summed over dimensions.
        ``nats``: each draw's estimate of the diffusion term, (B,); ``estimate``: the same after
        control variates; ``weight``: 1 / density of the draw's time.
        """
        if self.paused:
            return
        weight = weight.to(nats.device)
        second = (weight * nats.double().square()).sum()
        self.draws += torch.stack(
            [second.new_tensor(float(len(nats))), estimate.double().sum(), second]
        )
        if self.edges is None:
            return
        bins = len(self.edges) - 1
        bin_index = (torch.bucketize(gamma, self.edges.to(gamma)) - 1).clamp(0, bins - 1)
        error = squared_error.double() / self.dims
        ones, square = torch.ones_like(error), weight.square()
        values = (ones, weight, weight * error, square, square * error, square * error.square())
        for i, value in enumerate(values):
            self.bins.index_add_(0, bin_index + i * bins, value)

    def compute(self) -> Account:
        """Return all averages as an ``Account``; torchmetrics has added the processes' sums."""
        figures = self.figures()
        counted, noise, quadrature = self.noise.tolist()
        if figures and counted == figures[self.unit]["n"] and math.isfinite(noise):
            figures[self.unit]["draw_stderr"] = math.hypot(math.sqrt(noise), quadrature) / counted
        n, total, squares = self.draws.tolist()
        estimator = {}
        if n:
            variance = squares / n - (total / n) ** 2
            estimator = {"mean": total / n, "variance": max(variance, 0.0)}
        per_item = None
        if len(self.rows):
            index = self.rows[:, 0].nonzero().squeeze(1).cpu()
            per_item = index, self.rows.cpu()[index, 1:]
        return Account(figures, self.unit, self._level_curves(), estimator, per_item)

    def _level_curves(self) -> dict[str, list[Any]]:
        """Return the epsilon error at the centres of the noise-level bins; {} without bins."""
        if self.edges is None:
            return {}
        levels: dict[str, list[Any]] = {"gamma": [], "epsilon_mse": [], "stderr": []}
        centres = (0.5 * (self.edges[1:] + self.edges[:-1])).tolist()
        for centre, bin_sums in zip(
            centres, self.bins.view(SUMS_PER_BIN, -1).T.tolist(), strict=True
        ):
            n, *sums = bin_sums
            if n:
                mean, stderr = _weighted_mean_and_error(n, *sums)
                levels["gamma"].append(centre)
                levels["epsilon_mse"].append(mean)
                levels["stderr"].append(stderr)
        return levels


class LoggingModule(pl.LightningModule):
    """A LightningModule that raises UserError if the model and a callback log the same name.

    Lightning would silently log the mean of the two values.
    """

    # ``own``: whether the model itself logs the value. The other arguments are Lightning's.
    def log(self, name: str, *value: Any, own: bool = False, **how: Any) -> None:  # type: ignore[override]
        """Log a metric; ``own`` is True for the model's own metrics, False for all others."""
        sides = self.__dict__.setdefault("_sides", {})
        # Any component may log "step", which sets the x axis of loggers.
        if sides.setdefault(name, own) != own and name != "step":
            raise UserError(f"log({name!r}): the run itself logs this name; choose another name")
        super().log(name, *value, **how)

    def log_model_metrics(self, figures: dict[str, Any], **how: Any) -> None:
        """Log ``figures`` ({name: value}) as the model's own metrics."""
        for name, value in figures.items():
            self.log(name, value, own=True, **how)


def count_and_sums(value: Tensor) -> Tensor:
    """Return count, sum and sum of squares of the values, (3,) double."""
    return torch.stack([value.new_tensor(float(len(value))), value.sum(), value.square().sum()])


def _weighted_mean_and_error(
    n: float, w: float, we: float, ww: float, wwe: float, wwee: float
) -> tuple[float, float]:
    """Return a weighted mean and its standard error, from sums over n items.

    The sums are of weights w, values e and products of them: ``wwe`` is the sum of w^2 e.
    """
    # The mean is sum(w e) / sum(w), its standard error follows from the spread of w (e - mean).
    # With w = 1 they are the ordinary mean and standard error.
    mean = we / w
    spread = max(wwee - 2 * mean * wwe + mean**2 * ww, 0.0) * n / max(n - 1, 1)
    return mean, math.sqrt(spread) / w


def metric_from_sums(n: float, total: float, squares: float) -> dict[str, Any]:
    """Return {"mean", "stderr", "n"} from a count, a sum and a sum of squares."""
    mean = total / n
    variance = max(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
    return {"mean": mean, "stderr": math.sqrt(variance / n) if n > 1 else math.nan, "n": int(n)}
