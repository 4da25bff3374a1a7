r"""Samplers: from z_1 ~ prior down a grid of gammas to z_0, one ``step`` a pair of neighbours.

A sampler is driven by a ``Denoiser`` alone, so each works with every network, guidance and oracle, and
under any schedule: the grid is its own affair.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .schedule import Schedule


class Sampler:
    """Draws samples in ``steps`` steps on a grid that is uniform in t (``schedule``) or in gamma.

    Args:
        steps: number of steps, at least 1; each calls the denoiser once.
        grid: "gamma" (equal steps of log SNR) or "time" (equal steps of the schedule's t).

    Raises:
        ValueError: bad ``steps`` or ``grid``.
    """

    def __init__(self, steps: int, grid: str = "gamma"):
        if steps < 1:
            raise ValueError(f"sampler.steps={steps}: a whole number from 1 is accepted")
        if grid not in ("gamma", "time"):
            raise ValueError(f"sampler.grid={grid!r}: one of gamma, time is accepted")
        self.steps, self.grid = steps, grid

    def gammas(self, schedule: Schedule) -> Tensor:
        """The grid, from gamma(1) down to gamma(0), (steps + 1,)."""
        t = torch.linspace(1.0, 0.0, self.steps + 1)
        if self.grid == "time":
            return schedule.gamma(t)
        low, high = schedule.gamma(torch.tensor([0.0, 1.0]))
        return low + (high - low) * t

    def step(
        self,
        denoiser,
        z: Tensor,
        gamma_t: Tensor,
        gamma_s: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """z_t -> z_s for gamma_s < gamma_t, both ()."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        device: torch.device | str = "cpu",
        progress: Callable = iter,
    ) -> Tensor:
        """Samples of ``shape`` (B, *event) in data units: z_0 / alpha_0, the decoder's mean.

        ``progress`` wraps the loop over steps (a progress bar).
        """
        gammas = self.gammas(schedule).to(device)
        z = torch.randn(tuple(shape), generator=generator, device=device) * denoiser.process.prior_std(gammas[0])
        for i in progress(range(self.steps)):
            z = self.step(denoiser, z, gammas[i], gammas[i + 1], condition, generator)
        return z / denoiser.process.alpha_sigma(gammas[-1])[0]


class Ancestral(Sampler):
    """p(z_s | z_t) = q(z_s | z_t, x = x_hat): the generative model whose bound we report (tutorial eq. 93)."""

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None):
        guess = denoiser(z, gamma_t, condition)
        mean, std = denoiser.process.posterior(z, guess.x0, gamma_t, gamma_s)
        return mean + std * torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)


class DDIM(Sampler):
    r"""Song et al. 2021 (DDIM, eq. 12): z_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise.

    n = eta sigma_s sqrt(1 - exp(gamma_s - gamma_t)): eta = 0 is the probability-flow ODE's exponential
    integrator, eta = 1 the ancestral sampler.

    Raises:
        ValueError: ``eta`` outside [0, 1].
    """

    def __init__(self, steps: int, grid: str = "gamma", eta: float = 0.0):
        super().__init__(steps, grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.eta={eta}: a number in [0, 1] is accepted")
        self.eta = eta

    def step(self, denoiser, z, gamma_t, gamma_s, condition=None, generator=None):
        guess = denoiser(z, gamma_t, condition)
        alpha_s, sigma_s = denoiser.process.alpha_sigma(gamma_s)
        if not self.eta:
            return alpha_s * guess.x0 + sigma_s * guess.epsilon
        fresh = self.eta**2 * -torch.expm1(gamma_s - gamma_t)
        noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        kept = sigma_s * (1 - fresh).sqrt()
        return alpha_s * guess.x0 + kept * guess.epsilon + sigma_s * fresh.sqrt() * noise


