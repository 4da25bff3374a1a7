r"""Exact likelihood by the probability-flow ODE (Song et al. 2021, sec. 4.3).

In gamma, and in the coordinate u = z / sqrt(alpha^2 + sigma^2) that all processes share (there each is
variance preserving, a^2 = sigmoid(-gamma), s^2 = sigmoid(gamma)), the marginals of the denoiser flow along

    du / dgamma = 1/2 s (eps_hat - s u) = 1/2 a s v_hat,      d log p(u) / dgamma = -div(du / dgamma)

from the data's end to the prior's. A likelihood is a figure beside the bound, under its own name: it is
another quantity, of another model (a flow, not a Markov chain), and for data with K levels, D = 2 / (K - 1)
apart, it needs one of two dequantisations, whose nats the result has separately.

uniform   x + D (n - 1/2), n uniform: P(x) >= exp E log(p(x + ...) D^d), so -log P(x) <= E[-log p] - d log D.
lossless  z_0 ~ q(z_0 | x): -log P(x) <= E[-log p(z_0) + log q(z_0 | x) - log p(x | z_0)], and E log q is
          minus the entropy d/2 log(2 pi e s_0^2) (VDM, Kingma et al. 2021; no noise that the model was not
          trained on).
"""

import math
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from triptych.declare import Ge, Positive, declared

from .condition import Condition
from .decoder import Decoder
from .draws import Stream, seeded
from .flow import Flow
from .process import expand
from .protocol import AnyDenoiser
from .schedule import Schedule


class Nats(NamedTuple):
    """total = density + dequantisation + reconstruction, nats (B,) each; positive is worse.

    ``density``: -log p of the point that was put to the ODE. ``dequantisation``: what turns it into -log
    P(x) of the level; 0 for a density. ``reconstruction``: -log p(x | z_0), lossless only. ``stderr``: of the
    trace, from the spread between probes; 0 when it is exact.
    """

    total: Tensor
    density: Tensor
    dequantisation: Tensor
    reconstruction: Tensor
    stderr: Tensor


@declared("likelihood")
class Likelihood:
    """-log p(x) of a denoiser's probability-flow ODE.

    Args:
        schedule: for its endpoints; the path between them is the solver's affair.
        tolerance: absolute and relative, of u and of nats per dimension, in every step and for *every item*.
        probes: of Hutchinson's trace estimate (at least 2, drawn once a solve), or None for the exact trace.
        dequantisation: "none" (data with a density), "uniform" (over the level's cell) or "lossless" (of
            q(z_0 | x), and the decoder's reconstruction).
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
            raise ValueError("likelihood.dequantisation=uniform: needs data with levels; set none")
        if dequantisation == "lossless" and decoder is None:
            raise ValueError("likelihood.dequantisation=lossless needs a decoder p(x | z_0)")
        self.schedule, self.tolerance, self.probes = schedule, tolerance, probes
        self.dequantisation, self.decoder, self.levels, self.seed = dequantisation, decoder, levels, seed

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        index: Tensor | None = None,
        condition: Condition | None = None,
    ) -> Nats:
        """Return nats at x (B, *event); index (B,): data set places, default 0, 1, ...; condition of B items.

        ValueError for a denoiser that is guided, clipped or otherwise changed: its flow has no density.
        """
        if not getattr(denoiser, "has_likelihood", False):
            raise ValueError(
                f"{type(denoiser).__name__} has no likelihood: a guided or clipped guess is not the score "
                "of any density; use the denoiser without it"
            )
        index = torch.arange(len(x)) if index is None else index.cpu()
        # autograd is needed for the divergence, wherever this is called from
        with torch.inference_mode(False), torch.no_grad():
            x = x.detach().clone()
            low, high = self.schedule.ends(x.device).double().tolist()
            noise = self._noise(x, index)
            point = dequantise(self.dequantisation, x, low, noise, self.levels)
            flow = Flow(denoiser, condition, self._probes(x, index), self.tolerance)
            log_prob, stderr = flow.log_prob(point.u, low, high)
            density = point.density - log_prob
            account = torch.full_like(density, point.nats)
            reconstruction = torch.zeros_like(density)
            if self.decoder is not None and self.dequantisation == "lossless":
                gamma = torch.tensor(low, dtype=x.dtype, device=x.device)
                alpha, sigma = denoiser.process.alpha_sigma(expand(gamma, x))
                z = alpha * x + sigma * noise.to(x)
                reconstruction = self.decoder.nats(denoiser, x, z, gamma, condition).double()
        return Nats(density + account + reconstruction, density, account, reconstruction, stderr)

    def _noise(self, x: Tensor, index: Tensor) -> Tensor:
        draw = torch.rand if self.dequantisation == "uniform" else torch.randn
        rows = [
            draw(x.shape[1:], generator=seeded(self.seed, Stream.DEQUANTISATION, i), dtype=torch.float64)
            for i in index.tolist()
        ]
        return torch.stack(rows).to(x.device)

    def _probes(self, x: Tensor, index: Tensor) -> Tensor | None:
        if self.probes is None:
            return None
        shape = (self.probes, x[0].numel())
        rows = [
            torch.randint(0, 2, shape, generator=seeded(self.seed, Stream.PROBES, i)) for i in index.tolist()
        ]
        return (2.0 * torch.stack(rows, 1) - 1).to(x.device)


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
