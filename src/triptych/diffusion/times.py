r"""Distributions of training times. They change the variance of the loss, not its expectation.

    E_{t ~ uniform} f(t) = E_{t ~ p} f(t) / p(t)

so a weight (``loss``) and a density of times are two separate choices: each draw's loss is divided
by the density that it was drawn from. If the loss is averaged over the very density that draws it,
the loss of each draw is that of the paper (EDM: ``loss=edm times=log_normal``).

Evenly spaced numbers are mapped by the inverse distribution function, so draws stay evenly spread
over the batch (VDM, app. I.1). Only the draws of ``Uniform`` are independent.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from triptych.declare import Count, Gt, Le, Lt, Positive, declared

from .draws import BELOW_ONE
from .schedule import Schedule

Some = Annotated[float, Gt(0), Le(1)]  # a fraction above 0


@declared("objective.times")
class Times(nn.Module, ABC):
    """Base class: map uniform numbers to training times and their density.

    ``times(u, schedule) -> (t, density)``: u (B,) in [0, 1), t (B,) in [0, 1), density (B,) at t; a
    density of None is 1 everywhere. ``stratified``: whether u is spread evenly over a batch.
    ``learns``: whether the density follows the losses that ``tell`` receives.
    """

    stratified, learns = True, False

    @abstractmethod
    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        """Return times and their density, (B,) each."""

    def tell(self, t: Tensor, nats: Tensor, schedule: Schedule) -> None:
        """Record a whole batch's losses at its times, (B,) each, not divided by the density."""


class Density(Times):
    """A density of times that is known beforehand; a loss can be averaged over it as well."""

    @abstractmethod
    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        """Return the density of gamma, given the schedule's slope dgamma and its time t there.

        All have the same shape.
        """


class Stratified(Density):
    """Uniform in t, spread evenly over the batch (VDM, Kingma et al. 2021, app. I.1)."""

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        return u, None

    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        return 1 / dgamma


class Uniform(Stratified):
    """Uniform in t, drawn independently (Ho et al. 2020, algorithm 1)."""

    stratified = False


class LogNormal(Density):
    """Log-normal noise levels: ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1).

    So gamma ~ N(2 mean, (2 std)^2), truncated to the schedule's ends. On the straight path sigma /
    alpha = t / (1 - t), so this is logit t ~ N(mean, std^2) for the t of that path, whatever the
    schedule.
    """

    def __init__(self, mean: float = -1.2, std: Positive = 1.2):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        ends = schedule.ends(u.device, u.dtype)
        below = torch.special.ndtr(self._standard(ends))
        share = below[0] + u * (below[1] - below[0])
        gamma = 2 * (self.mean + self.std * torch.special.ndtri(share)).clamp(*(ends / 2))
        t = schedule.t_of(gamma).clamp(0, BELOW_ONE)
        slope = schedule.dgamma(t)
        return t, self.per_gamma(schedule.gamma(t), slope, t) * slope / (below[1] - below[0])

    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        return _standard_normal_density(self._standard(gamma)) / (2 * self.std)

    def _standard(self, gamma: Tensor) -> Tensor:
        return (gamma / 2 - self.mean) / self.std


class LogitNormal(Density):
    """Logit-normal times: logit t ~ N(mean, std^2), for the schedule's t (Esser et al. 2024, SD3).

    A schedule's t runs from 0 to 1 between its own ends, so it is the t of the straight path only
    if those are wide; ``LogNormal`` uses the path itself. The t of JiT (Li & He 2025) grows towards
    the data, so its mean of -.8 is .8 for our t. The density vanishes at both ends, and the
    outermost share of 2^-24 is not drawn.
    """

    def __init__(self, mean: float = 0.0, std: Positive = 1.0):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        low = 1 - BELOW_ONE  # at t = 0 and t = 1 the density is 0
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(low, BELOW_ONE)))
        t = t.clamp(low, BELOW_ONE)
        return t, self._density(t)

    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        return self._density(t.clamp(1 - BELOW_ONE, BELOW_ONE)) / dgamma

    def _density(self, t: Tensor) -> Tensor:
        return _standard_normal_density((torch.logit(t) - self.mean) / self.std) / (
            self.std * t * (1 - t)
        )


class Importance(Times):
    """iDDPM's importance sampling of steps by their recent losses (Nichol & Dhariwal 2021, eq. 18).

    p(step) ~ sqrt(E[L_step^2]), from the last losses of each step; uniform until every step has a
    full history. A thousandth of all draws stays uniform, as in iDDPM's code. iDDPM draws
    independently; here draws are evenly spread.

    Args:
        history: how many losses of each step are kept.
        uniform: share of the draws that stays uniform.
        objective_steps: T, from ``objective.steps``.
    """

    learns = True
    losses: Tensor
    seen: Tensor

    def __init__(
        self, history: Count = 10, uniform: Some = 0.001, objective_steps: int | None = None
    ):
        super().__init__()
        if objective_steps is None:
            problem = "it needs discrete steps, whose losses it stores"
            raise ValueError(f"objective/times=importance: {problem}; set objective.steps=T")
        self.steps, self.history, self.uniform = objective_steps, history, uniform
        self.register_buffer("losses", torch.zeros(objective_steps, history))
        self.register_buffer("seen", torch.zeros(objective_steps, dtype=torch.long))

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        full = (self.seen >= self.history).all()
        rates = torch.where(
            full, self.losses.square().mean(1).sqrt(), torch.ones_like(self.losses[:, 0])
        )
        density = Piecewise(rates, self.uniform)
        step = density.locate(u)
        return (step + 0.5) / self.steps, density.rates[step]

    @torch.no_grad()
    def tell(self, t: Tensor, nats: Tensor, schedule: Schedule) -> None:
        step = (t * self.steps).long()
        same = step.unsqueeze(1) == step.unsqueeze(0)
        before = same.tril(-1).sum(1)  # number of earlier items in the batch with the same step
        # Keep only the last ``history`` items of a step.
        is_kept = same.sum(1) - before <= self.history
        place = step * self.history + (self.seen[step] + before) % self.history
        # Index of an extra entry, which receives the losses that are not kept.
        spare = self.losses.numel()
        losses = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        losses[torch.where(is_kept, place, spare)] = nats.to(losses)
        self.losses.copy_(losses[:-1].view_as(self.losses))
        self.seen.index_add_(0, step, torch.ones_like(step))


class Adaptive(Times):
    """Adaptive times that make the mean loss of all levels equal (Kingma & Gao 2023).

    p(gamma) ~ E[w(gamma) |eps - eps_hat|^2], from a running mean of the loss in each of several
    equal bins of gamma, as in the paper's adaptive noise schedule; uniform in gamma until each bin
    has been seen. The default numbers are our own.

    Args:
        bins: number of bins of gamma between the schedule's ends.
        decay: decay of the running means, per batch with a draw in the bin.
        uniform: share of the draws that stays uniform in gamma.
    """

    learns = True
    means: Tensor
    seen: Tensor

    def __init__(
        self, bins: Count = 100, decay: Annotated[float, Gt(0), Lt(1)] = 0.999, uniform: Some = 0.01
    ):
        super().__init__()
        self.bins, self.decay, self.uniform = bins, decay, uniform
        self.register_buffer("means", torch.zeros(bins))
        self.register_buffer("seen", torch.zeros(bins))

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        low, high = schedule.ends(u.device, u.dtype)
        rates = torch.where((self.seen > 0).all(), self.means, torch.ones_like(self.means))
        share, density = Piecewise(rates, self.uniform)(u)
        t = schedule.t_of(low + (high - low) * share).clamp(0, BELOW_ONE)
        return t, density * schedule.dgamma(t) / (high - low)

    @torch.no_grad()
    def tell(self, t: Tensor, nats: Tensor, schedule: Schedule) -> None:
        low, high = schedule.ends(t.device, t.dtype)
        place = (
            ((schedule.gamma(t) - low) / (high - low) * self.bins).long().clamp(0, self.bins - 1)
        )
        count = torch.zeros_like(self.means).index_add_(
            0, place, torch.ones_like(self.means[place])
        )
        total = torch.zeros_like(self.means).index_add_(
            0, place, (nats / schedule.dgamma(t)).to(self.means)
        )
        self.seen.add_(count > 0)
        # For the first batches this is their plain mean.
        rate = torch.clamp(1 / self.seen.clamp(min=1), min=1 - self.decay) * (count > 0)
        self.means.add_(rate * (total / count.clamp(min=1) - self.means))


class Piecewise:
    """A piecewise constant density on [0, 1) over equal bins.

    Args:
        rates: (n,), the density in each bin up to a factor, not negative; if all are 0 it is
            uniform.
        uniform: share of the density that is uniform, so that 1 / density is at most 1 / uniform.
    """

    def __init__(self, rates: Tensor, uniform: float):
        shares = torch.where(rates.any(), rates / rates.mean(), torch.ones_like(rates))
        self.rates = (1 - uniform) * shares + uniform
        edges = self.rates.double().cumsum(0) / len(rates)
        self.edges = torch.cat([edges.new_zeros(1), edges])

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform u (B,) in [0, 1) to t and the density at t, (B,) each.

        Evenly spaced u give evenly spread t.
        """
        bins, place = len(self.rates), self.locate(u)
        within = ((u - self.edges[place]) * bins / self.rates[place]).clamp(0, 1).to(u)
        return ((place + within) / bins).clamp(max=BELOW_ONE), self.rates[place]

    def locate(self, u: Tensor) -> Tensor:
        bins = torch.searchsorted(self.edges, u.to(self.edges), right=True) - 1
        return bins.clamp(0, len(self.rates) - 1)


def _standard_normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
