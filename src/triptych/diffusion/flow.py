r"""The probability flow of a denoiser as an ODE in gamma, with its divergence; formulas in ``likelihood``.

Solved by torchdiffeq's adaptive Dormand-Prince in double precision. Its own error norm is a mean over the
whole batch, in which one difficult item drowns; ours is the largest over items of each item's own norm, so
every item keeps the tolerance whatever company it is in.
"""

import torch
from torch import Tensor
from torchdiffeq import odeint

from .condition import Condition
from .protocol import AnyDenoiser


class Flow:
    """Moves points and their log density between two gammas.

    Args:
        denoiser: in evaluation mode; its own dtype is respected; condition: of B items, or None.
        probes: (P, B, d) fixed through the solve, or None for the exact trace.
        tolerance: absolute and relative.
    """

    def __init__(
        self, denoiser: AnyDenoiser, condition: Condition | None, probes: Tensor | None, tolerance: float
    ):
        self.denoiser, self.condition, self.probes, self.tolerance = denoiser, condition, probes, tolerance
        first = next(iter(denoiser.parameters()), None)
        self.dtype = torch.float64 if first is None else first.dtype

    def log_prob(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Return log p(u) (B,) float64 at gamma ``low`` for u (B, *event), with standard error by probes."""
        gamma = torch.tensor([low, high], dtype=torch.float64, device=u.device)
        d = u[0].numel()
        columns = 1 if self.probes is None else len(self.probes)
        start = torch.cat([u.flatten(1), u.new_zeros(len(u), columns)], 1)

        def rate(level: Tensor, state: Tensor) -> Tensor:
            return self._rate(level, state[:, :d].view_as(u))

        def norm(state: Tensor) -> Tensor:
            points, nats = state[:, :d], state[:, d:]
            return torch.maximum(points.square().mean(1).sqrt(), nats.abs().mean(1)).max()

        try:
            path = odeint(
                rate, start, gamma, rtol=self.tolerance, atol=self.tolerance, options={"norm": norm}
            )
        except AssertionError as error:  # torchdiffeq's "underflow in dt"
            raise RuntimeError(
                f"likelihood.tolerance={self.tolerance}: the solver's step vanished ({error}); "
                "a larger tolerance suits a float32 network"
            ) from error
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
        # one by one: batched through vmap, networks in channels-last layout and custom kernels fail
        if self.probes is None:
            total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
            for k in range(u[0].numel()):
                row = torch.autograd.grad(drift.flatten(1)[:, k].sum(), u, retain_graph=True)[0]
                total += row.flatten(1)[:, k]
            return total.unsqueeze(0)
        pulled = [
            torch.autograd.grad(drift, u, v.view_as(u), retain_graph=True)[0] for v in self.probes.to(u)
        ]
        return torch.stack(
            [(g.flatten(1) * v).sum(1) for g, v in zip(pulled, self.probes.to(u), strict=True)]
        )
