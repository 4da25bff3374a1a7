r"""Exact likelihood by the probability-flow ODE (Song et al. 2021, sec. 4.3).

In gamma, and in the coordinate u = z / sqrt(alpha^2 + sigma^2) that all processes share (there each
is variance preserving, a^2 = sigmoid(-gamma), s^2 = sigmoid(gamma)), the marginals of the denoiser
flow along

    du / dgamma = 1/2 s (eps_hat - s u) = 1/2 a s v_hat,    d log p(u) / dgamma = -div(du / dgamma)

from the data's end to the prior's. A likelihood is reported beside the bound under its own name: it
is another quantity of another model (a flow, not a Markov chain). Data with K levels, D = 2 / (K -
1) apart, need one of two dequantisations, and its nats are reported separately.

- "uniform": x + D (n - 1/2) with n uniform. P(x) >= exp E log(p(x + ...) D^d), so -log P(x) <=
  E[-log p] - d log D.
- "lossless": z_0 ~ q(z_0 | x). -log P(x) <= E[-log p(z_0) + log q(z_0 | x) - log p(x | z_0)], where
  E log q is minus the entropy d/2 log(2 pi e s_0^2) (VDM, Kingma et al. 2021). It adds no noise
  that the model was not trained on.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from triptych.declare import Ge, Positive, declared

from .condition import Condition
from .decoder import Decoder
from .draws import BATCH_DRAWS, BatchDraws, Stream, seeded_generator
from .protocol import AnyDenoiser
from .schedule import Schedule


class Nats(NamedTuple):
    """A negative log-likelihood and its parts, nats (B,) each; larger is worse.

    total = density + dequantisation + reconstruction. ``density``: -log p of the point at which the
    ODE starts. ``dequantisation``: converts it to -log P(x) of the level; 0 for data with a
    density. ``reconstruction``: -log p(x | z_0), for "lossless" only. ``stderr``: standard error of
    the trace estimate, from the spread between probes; 0 if the trace is exact.
    """

    total: Tensor
    density: Tensor
    dequantisation: Tensor
    reconstruction: Tensor
    stderr: Tensor


@declared("likelihood")
class Likelihood:
    """Compute -log p(x) under a denoiser's probability-flow ODE.

    Args:
        schedule: gives the endpoints; the solver chooses the steps between them.
        tolerance: absolute and relative tolerance, of u and of nats per dimension, in every step
            and for *every item*.
        probes: number of probes of Hutchinson's trace estimate (at least 2, the same throughout a
            solve), or None for the exact trace.
        dequantisation: "none" (data with a density), "uniform" (noise over the level's cell) or
            "lossless" (noise of q(z_0 | x), and the decoder's reconstruction term).
        decoder: p(x | z_0), for "lossless".
        levels: number K of the data's levels, for "uniform".
        seed: probes and noise follow from it and the item's index.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        tolerance: Positive = 1e-5,
        probes: Annotated[int, Ge(2)] | None = None,
        dequantisation: Literal["none", "uniform", "lossless"] = "none",
        decoder: Decoder | None = None,
        levels: int | None = None,
        seed: int = 0,
    ):
        if dequantisation == "uniform" and (levels is None or levels < 2):
            raise ValueError(
                "likelihood.dequantisation=uniform: needs data with discrete levels; use none"
            )
        if dequantisation == "lossless" and decoder is None:
            raise ValueError(
                "likelihood.dequantisation=lossless: needs a decoder p(x | z_0); use uniform"
            )
        self.schedule, self.tolerance, self.probes = schedule, tolerance, probes
        self.dequantisation, self.decoder, self.levels, self.seed = (
            dequantisation,
            decoder,
            levels,
            seed,
        )

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        index: Tensor | None = None,
        condition: Condition | None = None,
        draws: BatchDraws = BATCH_DRAWS,
    ) -> Nats:
        """Return the negative log-likelihood of x (B, *event) in nats.

        ``index``: (B,), the items' places in the data set, by default 0, 1, .... ``condition``: of
        B items, or None. ``draws``: chooses where probes and noise are drawn, on the CPU or on the
        device of x. ValueError for a denoiser that is guided, clipped or otherwise changed:
        its flow has no density.
        """
        if not denoiser.has_likelihood:
            raise ValueError(
                f"{type(denoiser).__name__} has no likelihood: a guided or clipped prediction is "
                "not the score of a density; pass the model's own denoiser"
            )
        index = torch.arange(len(x)) if index is None else index.cpu()
        # The divergence needs autograd even if the caller is in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            x = x.detach().clone()
            condition = None if condition is None else condition.map(torch.clone)
            low, high = self.schedule.ends(x.device).double().tolist()
            place = draws.place(x.device)
            noise = self._noise(x, index, place)
            u, scale, dequantisation = dequantise(self.dequantisation, x, low, noise, self.levels)
            flow = Flow(denoiser, condition, self._probes(x, index, place), self.tolerance)
            log_prob, stderr = flow.log_prob(u, low, high)
            density = scale - log_prob
            dequantisation_nats = torch.full_like(density, dequantisation)
            reconstruction = torch.zeros_like(density)
            if self.decoder is not None and self.dequantisation == "lossless":
                gamma = torch.tensor(low, dtype=x.dtype, device=x.device)
                reconstruction = self.decoder.draw(
                    denoiser, x, noise.to(x), gamma, condition
                ).double()
        return Nats(
            density + dequantisation_nats + reconstruction,
            density,
            dequantisation_nats,
            reconstruction,
            stderr,
        )

    def _noise(self, x: Tensor, index: Tensor, place: torch.device) -> Tensor:
        draw = torch.rand if self.dequantisation == "uniform" else torch.randn
        rows = [
            draw(x.shape[1:], generator=generator, dtype=torch.float64, device=place)
            for generator in self._generators(Stream.DEQUANTISATION, index, place)
        ]
        return torch.stack(rows).to(x.device)

    def _probes(self, x: Tensor, index: Tensor, place: torch.device) -> Tensor | None:
        if self.probes is None:
            return None
        shape = self.probes, x[0].numel()
        rows = [
            torch.randint(0, 2, shape, generator=generator, device=place)
            for generator in self._generators(Stream.PROBES, index, place)
        ]
        return (2.0 * torch.stack(rows, 1) - 1).to(x.device)

    def _generators(
        self, stream: Stream, index: Tensor, place: torch.device
    ) -> Iterator[torch.Generator]:
        """Yield a generator for each item; draw from it before the next is yielded."""
        for i in index.tolist():
            yield seeded_generator(self.seed, stream, i, device=place)


def dequantise(
    kind: str, x: Tensor, gamma: float, noise: Tensor, levels: int | None = None
) -> tuple[Tensor, float, float]:
    """Return the ODE's starting point for x (B, *event) and two terms to add to its -log p.

    The point u (B, *event) is float64, at gamma_0, in the variance-preserving coordinate. The terms
    are the nats of the change of scale from u to x and those of the dequantisation. "none" and
    "uniform" put a data point itself at u = a_0 x, so -log p(x) = -log p(u) - d log a_0: the
    model's density of data is its density at gamma_0. ``noise``: as ``Likelihood`` draws it.
    """
    level = torch.tensor(gamma, dtype=torch.float64)
    a, s = torch.sigmoid(-level).sqrt().item(), torch.sigmoid(level).sqrt().item()
    data, dims = x.double(), x[0].numel()
    if kind == "lossless":
        return a * data + s * noise, 0.0, -0.5 * dims * math.log(2 * math.pi * math.e * s**2)
    if kind == "none" or levels is None:
        return a * data, -dims * math.log(a), 0.0
    spacing = 2 / (levels - 1)
    return a * (data + spacing * (noise - 0.5)), -dims * math.log(a), -dims * math.log(spacing)


class Flow:
    """Move points and their log density between two gammas by an ODE solver, in double.

    The solver is torchdiffeq's Dormand-Prince. Its own error norm is a mean over the whole batch,
    in which one difficult item hardly counts. Ours is the largest of the items' norms, so every
    item keeps the tolerance in any batch.

    Args:
        denoiser: in evaluation mode; it is called in its own dtype.
        condition: of B items, or None.
        probes: (P, B, d), the same throughout the solve, or None for the exact trace.
        tolerance: absolute and relative.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        condition: Condition | None,
        probes: Tensor | None,
        tolerance: float,
    ):
        self.denoiser, self.condition, self.probes, self.tolerance = (
            denoiser,
            condition,
            probes,
            tolerance,
        )
        first = next(iter(denoiser.parameters()), None)
        self.dtype = torch.float64 if first is None else first.dtype

    def log_prob(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return log p(u) at gamma ``low`` for u (B, *event), and its standard error.

        (B,) float64 each; the error is that of the probes.
        """
        gamma = torch.tensor([low, high], dtype=torch.float64, device=u.device)
        d = u[0].numel()
        columns = 1 if self.probes is None else len(self.probes)
        start = torch.cat([u.flatten(1), u.new_zeros(len(u), columns)], 1)

        def rate(level: Tensor, state: Tensor) -> Tensor:
            return self._rate(level, state[:, :d].view_as(u))

        def norm(state: Tensor) -> Tensor:
            points, nats = state[:, :d], state[:, d:]
            return torch.maximum(points.square().mean(1).sqrt(), nats.abs().mean(1)).max()

        path = odeint(
            rate, start, gamma, rtol=self.tolerance, atol=self.tolerance, options={"norm": norm}
        )
        end, traces = path[-1][:, :d], d * path[-1][:, d:]
        alpha, sigma = self.denoiser.process.alpha_sigma(gamma[1])
        std = self.denoiser.process.prior_std(gamma[1]) / torch.hypot(alpha, sigma)
        prior = -0.5 * ((end / std).square() + torch.log(2 * torch.pi * std.square())).sum(1)
        stderr = torch.zeros_like(prior) if columns == 1 else traces.std(1) / columns**0.5
        return prior + traces.mean(1), stderr

    def drift(self, u: Tensor, gamma: Tensor) -> Tensor:
        """Return du / dgamma at u (B, *event) and gamma ()."""
        alpha, sigma = self.denoiser.process.alpha_sigma(gamma)
        z = torch.hypot(alpha, sigma) * u
        guess = self.denoiser(z.to(self.dtype), gamma.to(self.dtype), self.condition)
        s = torch.sigmoid(gamma).sqrt()
        return 0.5 * s * (guess.epsilon.to(u.dtype) - s * u)

    def _rate(self, gamma: Tensor, u: Tensor) -> Tensor:
        """Return [du / dgamma, its divergence per dimension for each probe], (B, d + P)."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            drift = self.drift(u, gamma)
            traces = self._traces(u, drift)
        return torch.cat([drift.detach().flatten(1), traces.T / u[0].numel()], 1)

    def _traces(self, u: Tensor, drift: Tensor) -> Tensor:
        """Return v^T J v for each probe (P, B), or the trace of J (1, B)."""
        # Compute one product at a time, because vmap fails for the channels-last layout and for
        # custom kernels.
        if self.probes is None:
            total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
            for k in range(u[0].numel()):
                row = torch.autograd.grad(drift.flatten(1)[:, k].sum(), u, retain_graph=True)[0]
                total += row.flatten(1)[:, k]
            return total.unsqueeze(0)
        pulled = [
            torch.autograd.grad(drift, u, v.view_as(u), retain_graph=True)[0]
            for v in self.probes.to(u)
        ]
        return torch.stack(
            [(g.flatten(1) * v).sum(1) for g, v in zip(pulled, self.probes.to(u), strict=True)]
        )
