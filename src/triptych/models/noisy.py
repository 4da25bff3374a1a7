"""Metrics of a diffusion model: its loss, computed in two ways, and the error of its x estimate.

A loss with the effective weight w is a mixture of bounds (Kingma & Gao 2023, theorem 1). Let L(a) =
1/2 int_a^{gamma_1} |eps - eps_hat|^2 dgamma, which up to constants is the negative ELBO of data
with noise added to the level a. Then partial integration gives

    1/2 int w |eps - eps_hat|^2 dgamma = w(gamma_0) L(gamma_0) + int w'(a) L(a) da.

Where w never falls with the noise, the right side is an expectation over a of that ELBO.
"""

import math
from typing import Any

import torch
from torch import Tensor

from triptych.data.batch import Batch
from triptych.declare import Count, Share
from triptych.diffusion.loss import Elbo, Level
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion
from triptych.models.metric import PerItem, check_diffuses_data

CELLS = 4096  # number of levels a, at the centres of equal cells of the schedule's range


class WeightedLoss(PerItem):
    """The run's loss in continuous time, nats per dimension: 1/2 int w |eps - eps_hat|^2 dgamma.

    This is the left side of the equation in ``models.noisy``. An item's draws are spread evenly
    over time.
    """

    higher_is_better = False

    def __init__(self, draws: Count = 16):
        super().__init__()
        self.draws_per_item = draws

    @staticmethod
    def check(model: Diffusion) -> None:
        """Raise UserError unless the model diffuses the data and its loss is in continuous time."""
        check_diffuses_data(model)
        loss = model.objective.loss
        if loss.of_steps and not isinstance(loss, Elbo):
            raise UserError(
                f"objective.loss={type(loss).__name__}: this metric needs continuous time; set "
                "objective/loss=elbo, or remove the metric"
            )

    def values(self, model: Diffusion, batch: Batch) -> Tensor:  # type: ignore[override]  # see check
        total = torch.zeros(len(batch.x), device=batch.x.device)
        for k in range(self.draws_per_item):
            t = (torch.rand_like(total) + k) / self.draws_per_item
            at = _level_at(model, t)
            weight = model.objective.loss.weight(at)
            total += 0.5 * weight * at.dgamma * _squared_error(model, batch, at.gamma)
        return total / self.draws_per_item / model.dims


class NoisyBounds(WeightedLoss):
    """An average of the bounds of noised data, nats per dimension, which equals ``WeightedLoss``.

    This is the right side of the equation in ``models.noisy``. The noise level is drawn in
    proportion to |w'|; where w' < 0, the bound is subtracted.
    """

    def values(self, model: Diffusion, batch: Batch) -> Tensor:  # type: ignore[override]  # see check
        ends = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64, device=batch.x.device)
        at = _level_at(model, ends.clamp(max=1 - 1e-9))
        weight = model.objective.loss.weight(at)
        # The first level is gamma_0 itself; the others lie in the cells above it.
        mass = torch.cat([weight[:1], weight.diff()])
        low = torch.cat([at.gamma[:1], (at.gamma[1:] + at.gamma[:-1]) / 2])
        top, spread = at.gamma[-1], mass.abs().cumsum(0)
        total = torch.zeros(len(batch.x), device=batch.x.device)
        for k in range(self.draws_per_item):
            u = (torch.rand_like(total) + k) / self.draws_per_item
            place = torch.searchsorted(spread, u * spread[-1]).clamp(max=CELLS)
            a = low[place]
            gamma = (a + (top - a) * torch.rand_like(total)).float()
            bound = 0.5 * (top - a) * _squared_error(model, batch, gamma)
            total += (mass[place].sign() * spread[-1] * bound).float()
        return total / self.draws_per_item / model.dims


class Distortion(PerItem):
    """Root mean squared error of the estimate of x0 at time ``t`` (Ho et al. 2020, fig. 5).

    The unit is one level of the data.

    Args:
        t: time of the schedule; 0 is the boundary between the diffusion and the reconstruction
            term.
    """

    higher_is_better = False

    def __init__(self, t: Share = 0.0):
        super().__init__()
        self.t = float(t)

    check = staticmethod(check_diffuses_data)

    def values(self, model: Diffusion, batch: Batch) -> Tensor:  # type: ignore[override]  # see check
        gamma = model.schedule.gamma(torch.tensor(self.t, device=batch.x.device))
        z = model.denoiser.process.diffuse(batch.x, gamma, torch.randn_like(batch.x))
        error = model.denoiser(z, gamma, model.condition_of(batch)).x0 - batch.x
        scale = 1.0 if model.levels is None else (model.levels - 1) / 2
        return scale**2 * error.square().flatten(1).mean(1)

    def compute(self) -> dict[str, Any]:
        square = super().compute()
        if not square["mean"]:
            return square
        root = math.sqrt(square["mean"])
        return square | {"mean": root, "stderr": square["stderr"] / (2 * root)}


def _level_at(model: Diffusion, t: Tensor) -> Level:
    """Return the noise level at times t, as losses receive it."""
    schedule = model.schedule
    return Level(
        model.denoiser.process, schedule.gamma(t), schedule.dgamma(t), t, model.objective.space
    )


def _squared_error(model: Diffusion, batch: Batch, gamma: Tensor) -> Tensor:
    """Return the squared epsilon error, summed over dimensions, of items noised to gamma (B,)."""
    eps = torch.randn_like(batch.x)
    z = model.denoiser.process.diffuse(batch.x, gamma, eps)
    guess = model.denoiser(z, gamma, model.condition_of(batch))
    return guess.epsilon_error(batch.x, eps).square().flatten(1).sum(1)
