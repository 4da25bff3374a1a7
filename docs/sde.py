r"""Diffusion in continuous time (Song et al. 2021): the SDE of a process, and its two reversals.

    forward       dz = f(t) z dt + g(t) dw
    reverse       dz = [f(t) z - g(t)^2 score] dt + g(t) dw        (eq. 6; Anderson 1982)
    flow          dz/dt = f(t) z - 1/2 g(t)^2 score                (eq. 13)

The reverse SDE runs backwards in time; the flow is the probability-flow ODE. All three have the
marginals ``z = alpha x + sigma eps``, which fixes the coefficients: ``f = d log alpha / dt`` and
``g^2 = d sigma^2 / dt - 2 f sigma^2 = sigma^2 gamma'(t)``.
"""

from typing import Any

import torch
from torch import Tensor

from triptych.diffusion.process import Process, expand_like
from triptych.diffusion.schedule import Schedule


class SDE:
    """The SDE of a process under a schedule.

    Args:
        process: alpha and sigma at gamma.
        schedule: gamma(t).
    """

    def __init__(self, process: Process, schedule: Schedule):
        self.process, self.schedule = process, schedule

    @torch.enable_grad()
    def drift(self, t: Tensor) -> Tensor:
        """Return f(t) = d log alpha / dt by autograd, any shape.

        For VP it is -beta / 2, for VE 0.
        """
        t = t.detach().requires_grad_()
        alpha, _ = self.process.alpha_sigma(self.schedule.gamma(t))
        if not alpha.requires_grad:  # alpha of VE is constant
            return torch.zeros_like(alpha)
        return torch.autograd.grad(alpha.log().sum(), t)[0]

    def diffusion(self, t: Tensor) -> Tensor:
        """Return g(t)^2 = sigma^2 gamma'(t), any shape; for VP this is beta(t)."""
        _, sigma = self.process.alpha_sigma(self.schedule.gamma(t))
        return sigma.square() * self.schedule.dgamma(t)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Return f(t) z, (B, *event)."""
        return expand_like(self.drift(t), z) * z

    def reverse(self, denoiser: Any, z: Tensor, t: Tensor) -> Tensor:
        """Return the drift of the reverse SDE, f(t) z - g(t)^2 score, in forward time.

        A step backwards is -dt times it.
        """
        score = denoiser(z, self.schedule.gamma(t)).score
        return self.forward(z, t) - expand_like(self.diffusion(t), z) * score

    def flow(self, denoiser: Any, z: Tensor, t: Tensor) -> Tensor:
        """Return the right-hand side of the probability-flow ODE, f(t) z - 1/2 g(t)^2 score."""
        score = denoiser(z, self.schedule.gamma(t)).score
        return self.forward(z, t) - 0.5 * expand_like(self.diffusion(t), z) * score
