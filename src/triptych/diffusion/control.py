r"""Variance reduction for a report's diffusion term: importance sampling and control variates.

The term is an expectation over a time t and noise eps of f(x, t, eps). A report estimates it by

    w(t) [f(x, t, eps) - sum_k b_k(t) (g_k(x, t, eps) - E_eps g_k(x, t, .))],   t of density 1 / w

Here g_k is the diffusion term of the k-th denoiser of ``BaselineErrors``, which is fitted to the
training set and uses no network. The estimate is unbiased for every density and every b, as long as
neither was fitted to the draws that it is used on (importance sampling, VDM app. I; control
variates, Owen 2013, ch. 8):

- The density depends on training items, schedule and T alone. All settings of one data set,
  schedule and T therefore use the same times and noise, and differences between them stay paired.
  The density is proportional to the standard deviation over eps of the better reference's term at
  t, and at least a fifth of uniform, so that no weight exceeds 5.
- b is fitted to the network by least squares on ITEMS x REPEATS draws at training items and is
  linear in t between nodes. The fit also gives the mean curve m(t) of f, which is used for the
  standard error alone: it separates the noise of the draws from the error that the choice of times
  adds, which follows from the known integral of m.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .bound import Bound
from .condition import Condition
from .draws import CPU, Stream, evaluation_draw, evaluation_times, hash_seed, seeded_generator
from .protocol import AnyDenoiser
from .reference import BaselineErrors
from .times import Piecewise

ITEMS, REPEATS = 128, 8  # training items to which b(t) is fitted, and draws per item
NODES = 9  # number of nodes of the piecewise linear functions b(t) and m(t)
STIFF = 0.3  # smoothness penalty of b, relative to the weight of the data at a node
LOOKS = 8  # draws per item to estimate the density of times
BINS = 32  # number of equal bins of the density of times
UNIFORM = 0.2  # share of the density of times that is uniform


class DrawError(NamedTuple):
    """The error of each item's mean over its random draws, in two parts of (B,) each.

    ``variance``: the part due to chance, as a variance in nats^2. ``quadrature``: the part due to
    the choice of times, with its sign, in nats.
    """

    variance: Tensor
    quadrature: Tensor


class Control:
    """Times and control variates that reduce the noise of the reported bound of one denoiser.

    Args:
        reference: fitted on training items.
        x: training items (n, *event), of which the first ``ITEMS`` are used.
        seed: seed of the draws at these items.
        condition: the condition of the n items, or None.
        place: the device that draws.
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
        place: torch.device = CPU,
    ):
        self.bound, self.reference, self.place = bound, reference.to(x.device), place
        x = x[:ITEMS]
        index, device = torch.arange(len(x)), x.device
        t = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        self.density = Piecewise(self._term_std(x[:32], t).double(), UNIFORM)
        rows, targets = [], []
        for repeat in range(REPEATS):
            draw = evaluation_draw(
                tuple(x.shape[1:]), index, hash_seed(seed, Stream.CONTROL), repeat, REPEATS, place
            )
            at, weight = self.times(draw.t.cpu().double())
            eps = draw.eps.to(device)
            term = bound.diffusion(denoiser, x, at.float().to(device), eps, condition)
            basis = torch.cat(
                [torch.ones(1, len(x)).double(), self._centred_reference_terms(x, at, eps).cpu()]
            )
            rows.append(
                (_hat_basis(at)[:, None] * basis[None]).flatten(0, 1).T * weight.unsqueeze(1)
            )
            targets.append(term.nats.double().cpu() * weight)
        a, b = torch.cat(rows), torch.cat(targets)
        square = a.T @ a
        self.b = torch.linalg.solve(
            square + _roughness_penalty(square.diagonal()), a.T @ b
        ).reshape(NODES, -1)

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform u (B,) in [0, 1) to t and w = 1 / density at t, (B,) each, in double."""
        t, density = self.density(u)
        return t, 1 / density

    def __call__(self, nats: Tensor, x: Tensor, t: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted estimate of the diffusion term with its control variates subtracted.

        (B,) in double, from one draw: ``nats`` is f at x and eps (B, *event); ``nats``, ``t`` and
        ``weight`` w are (B,).
        """
        t = t.double().cpu()
        control = (
            (_hat_basis(t).T @ self.b[:, 1:]).T.to(x.device)
            * self._centred_reference_terms(x, t, eps)
        ).sum(0)
        return (nats.double() - control) * weight.to(x.device)

    def time_error(self, t: Tensor, weight: Tensor) -> Tensor:
        """Return w m(t) - int m, the error of an estimate that is due to its time alone.

        (B,) in double, on the CPU.
        """
        curve = self.b[:, 0]
        return (_hat_basis(t).T @ curve) * weight - torch.trapezoid(curve) / (NODES - 1)

    def _centred_reference_terms(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the control variates g - E g: terms of F references minus their means over noise.

        (F, B) in double.
        """
        gamma, factor = self.bound.rate(t.float().to(x.device))
        errors = self.reference.errors(x, gamma, eps)
        return factor.double() * (errors.value - errors.mean)

    def _term_std(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the std over eps of the better reference's diffusion term, (n,) in double."""
        gammas, factors = self.bound.rate(t.float().to(x.device))
        spread = []
        for i, (gamma, factor) in enumerate(zip(gammas, factors, strict=True)):
            repeated = x.repeat(LOOKS, *(1,) * (x.ndim - 1))
            generator = seeded_generator(Stream.SPREAD, i, device=self.place)
            eps = torch.randn(repeated.shape, generator=generator, device=self.place).to(x)
            error = self.reference.errors(repeated, gamma.expand(len(repeated)), eps)
            best = error.mean.mean(1).argmin()
            spread.append((factor * (error.value - error.mean)[best].square().mean().sqrt()).cpu())
        return torch.stack(spread)


def _roughness_penalty(weight: Tensor) -> Tensor:
    """Return a quadratic penalty on the differences of each b between neighbouring nodes.

    ``weight``: the diagonal of the least-squares matrix. The draws that b is fitted to may lack a
    rare but large error; the penalty then keeps b close to its value at the neighbouring nodes.
    """
    difference = torch.eye(NODES, dtype=torch.float64).diff(dim=0)
    scale = weight.reshape(NODES, -1).mean(0)
    penalty = (
        torch.cat([scale.new_full((1,), 1e-6), scale.new_full((len(scale) - 1,), STIFF)]) * scale
    )
    rough = torch.kron(difference.T @ difference, penalty.diag())
    return rough + 1e-9 * weight.mean() * torch.eye(len(weight), dtype=torch.float64)


def _hat_basis(t: Tensor) -> Tensor:
    """Return the piecewise linear basis on ``NODES`` equally spaced nodes in [0, 1], (NODES, B)."""
    nodes = torch.arange(NODES, dtype=t.dtype).unsqueeze(1)
    return (1 - (t * (NODES - 1) - nodes).abs()).clamp(min=0)


def controlled_error(
    totals: Tensor, controls: Sequence[Control | None], index: Tensor, seed: int
) -> DrawError:
    """Estimate the error of each item's mean over draws (R, B) of a bound or of a sum of bounds.

    It is NaN if a control is missing or if there is only one draw. The noise is independent between
    items. The error due to times is not, because all items share nearly the same mean curve: over
    several items the signed errors add up, and they cancel only as far as the items' times
    complement one another.
    """
    repeats = len(totals)
    if repeats < 2 or None in controls:
        unknown = torch.full_like(totals[0], torch.nan)
        return DrawError(unknown, unknown)
    uniforms = [evaluation_times(index.cpu(), seed, repeat, repeats) for repeat in range(repeats)]
    trends = [
        torch.stack([c.time_error(*c.times(u)) for u in uniforms])
        for c in controls
        if c is not None
    ]
    trend = torch.stack(trends).sum(0)
    return DrawError(lattice_variance(totals.cpu() - trend, torch.stack(uniforms)), trend.mean(0))


def lattice_variance(value: Tensor, u: Tensor) -> Tensor:
    """Estimate the variance of each item's mean over draws at evenly spaced u, (B,).

    ``value``: the draws (R, B), with the trend over t removed. The sample variance of evenly spaced
    draws includes the change of f over t, which does not affect their mean. Without a trend,
    neighbours differ by noise alone. With draws sorted by u, sum_r (y_{r+1} - y_r)^2 / (2 R)
    therefore estimates the variance of the noise (von Neumann 1941), and the variance of the mean
    of R draws is 1/R of that. The last and the first draw are neighbours too. NaN for one draw.
    """
    repeats = len(value)
    ordered = value.gather(0, u.argsort(0))
    squares = (ordered.roll(-1, 0) - ordered).square().mean(0)
    return squares / (2 * repeats) if repeats > 1 else torch.full_like(squares, torch.nan)
