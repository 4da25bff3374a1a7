r"""Where training times fall. The loss is the same whatever draws them; what differs is its variance.

    E_{t ~ uniform} f(t) = E_{t ~ p} f(t) / p(t)

so a weight (``loss``) and a density of times are two choices: each draw's loss is divided by the density
that it was drawn from. The paper's own loss comes out draw by draw where the loss is averaged over the very
density that draws it (EDM: ``loss=edm times=log_normal``).

Draws are the images of evenly spaced numbers under the inverse distribution function, so they stay spread
evenly over the batch (VDM, app. I.1), but for ``Uniform``'s, which are independent.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from triptych.declare import Count, Gt, Le, Lt, Positive, declared

from .draws import BELOW_ONE
from .schedule import Schedule

Some = Annotated[float, Gt(0), Le(1)]  # a share that is not nothing


@declared("objective.times")
class Times(nn.Module, ABC):
    """``times(u, schedule) -> (t, density)``: u (B,) uniform in [0, 1), t (B,) in [0, 1), density (B,) of t.

    A density of None is 1 everywhere. ``stratified``: whether u is spread evenly over a batch; ``learns``:
    whether it follows the losses that ``tell`` hands over.
    """

    stratified, learns = True, False

    @abstractmethod
    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        """Return times and their density, (B,) each."""

    def tell(self, t: Tensor, nats: Tensor, schedule: Schedule) -> None:
        """Take note of the losses (B,) at the times (B,) of a whole batch, not divided by their density."""


class Density(Times):
    """A density that is known beforehand, which a loss can be averaged over as well."""

    @abstractmethod
    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        """Return density of gamma where the schedule's slope is dgamma and its time t, all of one shape."""


class Stratified(Density):
    """Uniform in t, spread evenly over the batch (VDM, Kingma et al. 2021, app. I.1)."""

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        return u, None

    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        return 1 / dgamma


class Uniform(Stratified):
    """Uniform in t, each on its own (Ho et al. 2020, algorithm 1)."""

    stratified = False


class LogNormal(Density):
    """ln(sigma / alpha) ~ N(mean, std^2), so gamma ~ N(2 mean, (2 std)^2) (Karras et al. 2022, table 1).

    Draws are of the part between the schedule's ends. On the straight path sigma / alpha = t / (1 - t), so
    this is logit t ~ N(mean, std^2) of that path whatever the schedule.
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
        return _normal(self._standard(gamma)) / (2 * self.std)

    def _standard(self, gamma: Tensor) -> Tensor:
        return (gamma / 2 - self.mean) / self.std


class LogitNormal(Density):
    """logit t ~ N(mean, std^2), t that of the schedule (Esser et al. 2024, SD3).

    A schedule's t runs from 0 to 1 between its own ends, so this is the straight path's t only where those
    are wide; ``LogNormal`` is of the path itself. JiT's t (Li & He 2025) grows with the data, so its mean of
    -.8 is .8 there. The density vanishes at both ends, and beyond a share of 2^-24 there are no draws.
    """

    def __init__(self, mean: float = 0.0, std: Positive = 1.0):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        low = 1 - BELOW_ONE  # at 0 and at 1 there is no density to divide by
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(low, BELOW_ONE)))
        t = t.clamp(low, BELOW_ONE)
        return t, self._density(t)

    def per_gamma(self, gamma: Tensor, dgamma: Tensor, t: Tensor) -> Tensor:
        return self._density(t.clamp(1 - BELOW_ONE, BELOW_ONE)) / dgamma

    def _density(self, t: Tensor) -> Tensor:
        return _normal((torch.logit(t) - self.mean) / self.std) / (self.std * t * (1 - t))


class Importance(Times):
    """iDDPM (Nichol & Dhariwal 2021, eq. 18): p(step) ~ sqrt(E[L_step^2]), from each step's last losses.

    Uniform until every step has a full history; a thousandth of all draws stays uniform, as in their code.
    Theirs are independent draws, ours evenly spread ones.

    Args:
        history: losses that are kept of each step.
        uniform: share of the draws that stays uniform.
        objective_steps: T, from ``objective.steps``.
    """

    learns = True
    losses: Tensor
    seen: Tensor

    def __init__(self, history: Count = 10, uniform: Some = 0.001, objective_steps: int | None = None):
        super().__init__()
        if objective_steps is None:
            problem = "its history is that of a step"
            raise ValueError(f"objective/times=importance: {problem}; set objective.steps=T")
        self.steps, self.history, self.uniform = objective_steps, history, uniform
        self.register_buffer("losses", torch.zeros(objective_steps, history))
        self.register_buffer("seen", torch.zeros(objective_steps, dtype=torch.long))

    def forward(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor | None]:
        full = (self.seen >= self.history).all()
        rates = torch.where(full, self.losses.square().mean(1).sqrt(), torch.ones_like(self.losses[:, 0]))
        density = Piecewise(rates, self.uniform)
        step = density.place(u)
        return (step + 0.5) / self.steps, density.rates[step]

    @torch.no_grad()
    def tell(self, t: Tensor, nats: Tensor, schedule: Schedule) -> None:
        step = (t * self.steps).long()
        same = step.unsqueeze(1) == step.unsqueeze(0)
        before = same.tril(-1).sum(1)  # how many earlier in the batch are of the same step
        stays = same.sum(1) - before <= self.history  # the rest would be overwritten at once
        place = step * self.history + (self.seen[step] + before) % self.history
        spare = self.losses.numel()  # a place for the losses that are not kept
        losses = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        losses[torch.where(stays, place, spare)] = nats.to(losses)
        self.losses.copy_(losses[:-1].view_as(self.losses))
        self.seen.index_add_(0, step, torch.ones_like(step))


class Adaptive(Times):
    """p(gamma) ~ E[w(gamma) |eps - eps_hat|^2], which makes all levels' mean loss equal (Kingma & Gao 2023).

    From a running mean of the loss in each of equal bins of gamma, as their adaptive noise schedule; uniform
    in gamma until each has been seen. The default numbers are our own.

    Args:
        bins: of gamma between the schedule's ends.
        decay: of the running means, by batch in which a bin is seen.
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
        place = ((schedule.gamma(t) - low) / (high - low) * self.bins).long().clamp(0, self.bins - 1)
        count = torch.zeros_like(self.means).index_add_(0, place, torch.ones_like(self.means[place]))
        total = torch.zeros_like(self.means).index_add_(0, place, (nats / schedule.dgamma(t)).to(self.means))
        self.seen.add_(count > 0)
        # a plain mean of the batches at first
        rate = torch.clamp(1 / self.seen.clamp(min=1), min=1 - self.decay) * (count > 0)
        self.means.add_(rate * (total / count.clamp(min=1) - self.means))


class Piecewise:
    """A piecewise constant density on [0, 1) over equal bins: ``rates`` (n,) up to a factor.

    Args:
        rates: not negative; where all are 0 the density is uniform.
        uniform: share of the density that is uniform, so that 1 / density is at most 1 / uniform.
    """

    def __init__(self, rates: Tensor, uniform: float):
        shares = torch.where(rates.any(), rates / rates.mean(), torch.ones_like(rates))
        self.rates = (1 - uniform) * shares + uniform
        edges = self.rates.double().cumsum(0) / len(rates)
        self.edges = torch.cat([edges.new_zeros(1), edges])

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform u (B,) in [0, 1) to (t, density at t), (B,) each: a lattice stays one."""
        bins, place = len(self.rates), self.place(u)
        within = ((u - self.edges[place]) * bins / self.rates[place]).clamp(0, 1).to(u)
        return ((place + within) / bins).clamp(max=BELOW_ONE), self.rates[place]

    def place(self, u: Tensor) -> Tensor:
        bins = torch.searchsorted(self.edges, u.to(self.edges), right=True) - 1
        return bins.clamp(0, len(self.rates) - 1)


def _normal(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
