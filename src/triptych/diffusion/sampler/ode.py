r"""Solvers of the probability-flow ODE.

dy/ds = epsilon(z, gamma) with y = z / alpha and s = sigma / alpha.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.declare import Count, NonNegative, Positive, Share

from ..condition import Condition, find_part
from ..protocol import AnyDenoiser
from ..schedule import Schedule
from .base import Grid, Sampler, Step


class Euler(Sampler):
    r"""Euler's method: y_s = y_t + (s_s - s_t) eps_hat, first order.

    In z this is alpha_s x_hat + sigma_s eps_hat: DDIM with eta = 0 (Song et al. 2021, sec. 4.3).
    """

    def step(self, z: Tensor, at: Step) -> Tensor:
        return at.guess(z, at.gamma_t).at(*at.scales(at.gamma_s))


class DDIM(Sampler):
    """DDIM (Song et al. 2021, eq. 12), deterministic or with added noise.

    z_s = alpha_s x_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise with n = eta sigma_s sqrt(1 -
    exp(gamma_s - gamma_t)). n is eta times the root of beta tilde, as in the paper's eq. 16,
    whatever the reverse variance of the bound. eta = 0 is the first-order step of the
    probability-flow ODE, eta = 1 the ancestral sampler with beta tilde.
    """

    def __init__(self, steps: int, grid: Grid = "gamma", eta: Share = 0.0, **options: Any):
        super().__init__(steps, grid, **options)
        self.eta = eta

    def step(self, z: Tensor, at: Step) -> Tensor:
        guess = at.guess(z, at.gamma_t)
        alpha, sigma = at.scales(at.gamma_s)
        if not self.eta:
            return guess.at(alpha, sigma)
        fresh = self.eta**2 * -torch.expm1(at.gamma_s - at.gamma_t)
        mean = guess.at(alpha, sigma * torch.sqrt(1 - fresh))
        return mean.addcmul_(at.noise(z), sigma * torch.sqrt(fresh))


class Chosen(DDIM):
    """Draw several samples by DDIM and keep the one closest to a vector of the condition.

    The closest one has the highest dot product. DALL-E 2's prior does this (Ramesh et al. 2022,
    sec. 2.2): of two image embeddings it keeps the one closer to that of the text.

    Args:
        draws: number of samples to choose from; with 1, or a condition without the part, DDIM's own
            sample is returned, bit for bit.
        by: name of the part of the condition, a vector of the samples' size.
    """

    def __init__(self, steps: int, draws: Count = 2, by: str = "text_embedding", **more: Any):
        super().__init__(steps, **more)
        self.draws, self.by = draws, by
        self.calls = self.guesses = draws

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        condition: Condition | None = None,
        **more: Any,
    ) -> Tensor:
        draw = partial(super().__call__, denoiser, schedule, shape, condition=condition, **more)
        part = find_part(condition, self.by)
        if part is None or self.draws == 1:
            return draw()
        draws = torch.stack([draw() for _ in range(self.draws)])  # (D, B, *event)
        best = (draws.flatten(2) * part.value.flatten(1)).sum(2).argmax(0)
        return draws[best, torch.arange(len(best), device=best.device)]


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one call per step.

    In half log SNR, lambda = -gamma / 2, let h be the step and h' the one before it. Then z_s =
    (sigma_s / sigma_t) z + alpha_s (1 - e^{-h}) D with D = x_t + (h / 2 h') (x_t - x_before), where
    x_t is the predicted x0. The first step uses D = x_t, as in DDIM, and so does the last, which
    might overshoot the data.
    """

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, sigma = at.scales(at.gamma_s)
        guess = at.guess(z, at.gamma_t)
        z_s = guess.at(alpha, sigma)
        change = at.gamma_s - at.gamma_t  # -2 h
        if at.history is not None and not at.last:
            change_before, x0 = at.history
            pull = -0.5 * alpha * (change / change_before) * torch.expm1(0.5 * change)
            z_s.addcmul_(guess.x0 - x0, pull)
        at.history = change, guess.x0
        return z_s


class Heun(Sampler):
    r"""Heun's method (Karras et al. 2022, algorithm 1): second order, two calls per step.

    y_s = y_t + (s_s - s_t) (eps_t + eps_s) / 2, with eps_s predicted at Euler's point.
    """

    calls = 2

    def step(self, z: Tensor, at: Step) -> Tensor:
        alpha, sigma = at.scales(at.gamma_s)
        guess = at.guess(z, at.gamma_t)
        euler = guess.at(alpha, sigma)
        at_euler = at.guess(euler, at.gamma_s)
        # The factor is alpha_s (s_s - s_t) / 2.
        half = -0.5 * sigma * torch.expm1(0.5 * (at.gamma_t - at.gamma_s))
        return torch.addcmul(euler, at_euler.epsilon - guess.epsilon, half)


class EDM(Heun):
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2): add noise, then take Heun's step.

    The paper's sigma is s = sigma / alpha = e^{gamma / 2}. Where low <= s <= high, s is first
    raised to s' = s (1 + min(churn / steps, sqrt 2 - 1)), y' = y + noise sqrt(s'^2 - s^2) N(0, I),
    and Heun's step starts there. The paper ends with an Euler step to sigma = 0; we end at the
    schedule's end.

    Args:
        churn, noise: their S_churn and S_noise.
        low, high: their S_tmin and S_tmax, of sigma / alpha; None: no limit.
    """

    def __init__(
        self,
        steps: int,
        grid: Grid = "karras",
        churn: NonNegative = 0.0,
        noise: Positive = 1.0,
        low: NonNegative = 0.0,
        high: Positive | None = None,
        **options: Any,
    ):
        super().__init__(steps, grid, **options)
        self.churn, self.noise = churn, noise
        self.low, self.high = low, math.inf if high is None else high
        self.raised = min(churn / steps, math.sqrt(2) - 1)  # the paper's gamma_i: s' / s - 1

    def step(self, z: Tensor, at: Step) -> Tensor:
        if self.raised:
            s = torch.exp(0.5 * at.gamma_t)
            # Use a tensor, because a bool would wait for the device.
            inside = (self.low <= s) & (s <= self.high)
            raised_gamma = at.gamma_t + inside.to(s) * (2 * math.log1p(self.raised))
            (alpha, sigma), (before, _) = map(at.scales, (raised_gamma, at.gamma_t))
            fresh = self.noise * sigma * torch.sqrt(-torch.expm1(at.gamma_t - raised_gamma))
            z = (alpha / before * z).addcmul_(at.noise(z), fresh)
            at = replace(at, gamma_t=raised_gamma)
        return super().step(z, at)
