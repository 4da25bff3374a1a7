r"""A report's draws of the diffusion term: where its times fall, and what is taken off their noise.

The term is an expectation over a time t and noise eps of f(x, t, eps). A report estimates it by

    w(t) [f(x, t, eps) - sum_k b_k(t) (g_k(x, t, eps) - E_eps g_k(x, t, .))],   t of density 1 / w

with g_k the term of the ``BaselineErrors`` denoisers, which know the training set and no network. It is
unbiased whatever the density and whatever b, as long as neither has seen the draws they are used on
(importance sampling, VDM app. I; control variates, Owen 2013, ch. 8):

- the density follows from training items, schedule and T alone, so that all settings of one data set,
  schedule and T meet the same times and noise, and differences between them stay paired. It is proportional
  to the spread over eps of the better reference's term at t, and nowhere below a fifth of uniform, so that no
  weight exceeds 5;
- b is fitted to the network by least squares on ITEMS x REPEATS draws at training items, linear in t between
  nodes, together with f's mean curve m(t), which is used for the standard error alone: for the noise about
  it, and for what the times at hand miss of its integral, which is known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .bound import Bound
from .condition import Condition
from .draws import Stream, evaluation_draw, evaluation_times, mix, seeded
from .protocol import AnyDenoiser
from .reference import BaselineErrors
from .times import Piecewise

ITEMS, REPEATS = 128, 8
NODES = 9  # of the piecewise linear b(t) and m(t)
STIFF = 0.3  # weight of b's change between nodes beside the data's own weight at a node
LOOKS = 8  # draws an item by which the density is estimated
BINS = 32  # equal bins of the density of times
UNIFORM = 0.2


class DrawError(NamedTuple):
    """What the mean over an item's draws is wrong by, (B,) each: nats^2 by chance, nats by its times."""

    variance: Tensor
    quadrature: Tensor


class Control:
    """Times of a report and the control of its draws, for one bound and one denoiser.

    Args:
        reference: fitted on training items.
        x: training items (n, *event), of which the first ``ITEMS`` are drawn on; seed: of those draws.
        condition: of n items, or None.
    """

    @torch.no_grad()
    def __init__(
        self,
        bound: Bound,
        denoiser: AnyDenoiser,
        reference: BaselineErrors,
        x: Tensor,
        seed: int,
        condition: Condition | None = None,
    ):
        self.bound, self.reference = bound, reference.to(x.device)
        x = x[:ITEMS]
        index, device = torch.arange(len(x)), x.device
        t = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        self.density = Piecewise(self._spread(x[:32], t).double(), UNIFORM)
        rows, targets = [], []
        for repeat in range(REPEATS):
            draw = evaluation_draw(tuple(x.shape[1:]), index, mix(seed, Stream.CONTROL), repeat, REPEATS)
            at, weight = self.times(draw.t.double())
            eps = draw.eps.to(device)
            term = bound.diffusion(denoiser, x, at.float().to(device), eps, condition)
            basis = torch.cat([torch.ones(1, len(x)).double(), self._centred(x, at, eps).cpu()])
            rows.append((_hats(at)[:, None] * basis[None]).flatten(0, 1).T * weight.unsqueeze(1))
            targets.append(term.nats.double().cpu() * weight)
        a, b = torch.cat(rows), torch.cat(targets)
        square = a.T @ a
        self.b = torch.linalg.solve(square + _roughness(square.diagonal()), a.T @ b).reshape(NODES, -1)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform u (B,) in [0, 1) to (t, w = 1 / density at t), (B,) each, double."""
        t, density = self.density(u)
        return t, 1 / density

    def __call__(self, nats: Tensor, x: Tensor, t: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
        """Estimate (B,), double, from one draw: ``nats`` f at x, eps (B, *event), t and w, (B,) each."""
        t = t.double().cpu()
        control = ((_hats(t).T @ self.b[:, 1:]).T.to(x.device) * self._centred(x, t, eps)).sum(0)
        return (nats.double() - control) * weight.to(x.device)

    def trend(self, t: Tensor, weight: Tensor) -> Tensor:
        """Return w m(t) - int m: what an estimate is off by for its time alone, (B,) double on the CPU."""
        curve = self.b[:, 0]
        return (_hats(t).T @ curve) * weight - torch.trapezoid(curve) / (NODES - 1)

    def _centred(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return g - E g, (F, B) double."""
        gamma, factor = self.bound.rate(t.float().to(x.device))
        errors = self.reference.errors(x, gamma, eps)
        return factor.double() * (errors.value - errors.mean)

    def _spread(self, x: Tensor, t: Tensor) -> Tensor:
        """Return std over eps of the better reference's term, (n,) double."""
        gammas, factors = self.bound.rate(t.float().to(x.device))
        spread = []
        for i, (gamma, factor) in enumerate(zip(gammas, factors, strict=True)):
            many = x.repeat(LOOKS, *(1,) * (x.ndim - 1))
            eps = torch.randn(many.shape, generator=seeded(Stream.SPREAD, i)).to(x)
            error = self.reference.errors(many, gamma.expand(len(many)), eps)
            best = error.mean.mean(1).argmin()
            spread.append((factor * (error.value - error.mean)[best].square().mean().sqrt()).cpu())
        return torch.stack(spread)


def _roughness(weight: Tensor) -> Tensor:
    """Return a penalty on the differences of each b between neighbouring nodes, from all columns' weights.

    A rare but large error may be missing from the draws that b is fitted to: there b is its neighbour's.
    """
    difference = torch.eye(NODES, dtype=torch.float64).diff(dim=0)
    scale = weight.reshape(NODES, -1).mean(0)
    penalty = torch.cat([scale.new_full((1,), 1e-6), scale.new_full((len(scale) - 1,), STIFF)]) * scale
    rough = torch.kron(difference.T @ difference, penalty.diag())
    return rough + 1e-9 * weight.mean() * torch.eye(len(weight), dtype=torch.float64)


def _hats(t: Tensor) -> Tensor:
    """Return the basis of functions linear between ``NODES`` equal nodes on [0, 1], (NODES, B)."""
    nodes = torch.arange(NODES, dtype=t.dtype).unsqueeze(1)
    return (1 - (t * (NODES - 1) - nodes).abs()).clamp(min=0)


def controlled_error(
    totals: Tensor, controls: Sequence[Control | None], index: Tensor, seed: int
) -> DrawError:
    """Estimate the error of each item's mean over draws (R, B) of a bound, or sum; NaN without control.

    Noise is independent from item to item. The error by times is not, as all items have about one mean curve:
    over items their signed errors add up, and cancel as far as the items' times complete one another.
    """
    repeats = len(totals)
    if repeats < 2 or None in controls:
        unknown = torch.full_like(totals[0], torch.nan)
        return DrawError(unknown, unknown)
    places = [evaluation_times(index.cpu(), seed, repeat, repeats) for repeat in range(repeats)]
    trends = [torch.stack([c.trend(*c.times(u)) for u in places]) for c in controls if c is not None]
    trend = torch.stack(trends).sum(0)
    return DrawError(lattice_variance(totals.cpu() - trend, torch.stack(places)), trend.mean(0))


def lattice_variance(value: Tensor, u: Tensor) -> Tensor:
    """Estimate the variance (B,) of each item's mean over draws (R, B), without trend, at evenly spaced u.

    The spread of evenly spaced draws holds the change of f over t, which their mean does not feel. Neighbours
    differ in noise alone where the trend is gone, so with draws sorted by u sum_r (y_{r+1} - y_r)^2 / (2 R)
    estimates the noise's variance (von Neumann 1941), of which the mean of R has 1 / R; the last and first
    are neighbours too. NaN for one draw.
    """
    repeats = len(value)
    ordered = value.gather(0, u.argsort(0))
    squares = (ordered.roll(-1, 0) - ordered).square().mean(0)
    return squares / (2 * repeats) if repeats > 1 else torch.full_like(squares, torch.nan)
