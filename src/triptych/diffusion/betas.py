r"""DDPM's discrete schedule of T betas (Ho et al. 2020), as in diffusers' ``DDPMScheduler``.

DDPM's latents x_1 .. x_T lie at t = k / (T - 1) for k = 0 .. T - 1, so our z_0 is DDPM's x_1. A
bound in T - 1 steps has the terms of DDPM: the prior is L_T, the steps are L_{T-1} .. L_1, and the
reconstruction is L_0 = -log p(x_0 | x_1).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from triptych.declare import Ge, Gt, Le, Lt

from .schedule import Linear

Beta = Annotated[float, Gt(0), Lt(1)]
NEAR = 1e-3  # tolerance, in steps, within which a float32 t or gamma is rounded to a step


class Betas(Linear):
    """DDPM's schedule: gamma at each of T levels, with linear interpolation between them.

    gamma_k = log((1 - abar_k) / abar_k) with abar = cumprod(1 - beta) in float32.

    Args:
        num_train_timesteps: the number of levels T.
        beta_schedule: "linear"; "scaled_linear", which is linear in the square roots of the betas;
            or "squaredcos_cap_v2", the cosine schedule of Nichol & Dhariwal (2021).
        beta_start, beta_end: first and last beta of the two linear schedules.
        trained_betas: T betas in place of a named schedule.
    """

    denoised = True

    def __init__(
        self,
        num_train_timesteps: Annotated[int, Ge(2), Le(10_000)] = 1000,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        beta_start: Beta = 0.0001,
        beta_end: Beta = 0.02,
        trained_betas: Sequence[Beta] | None = None,
    ):
        steps = num_train_timesteps
        if trained_betas is not None:
            betas = torch.tensor(list(trained_betas), dtype=torch.float32)
            if len(betas) != steps:
                fix = f"must be {steps}, as schedule.num_train_timesteps"
                raise ValueError(f"schedule.trained_betas: {len(betas)} numbers; {fix}")
        elif beta_schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
        elif beta_schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
        else:
            alpha_bars = [
                math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)
            ]
            betas = torch.tensor(
                [min(1 - alpha_bars[k + 1] / alpha_bars[k], 0.999) for k in range(steps)]
            )
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0).double()
        table = torch.log((1 - alphas_cumprod) / alphas_cumprod)
        if not (table.isfinite().all() and (table.diff() > 0).all()):
            problem = (
                "alphas_cumprod must be below 1, decrease at each step, and stay above 0 in float32"
            )
            raise ValueError(f"schedule: {problem}; change the betas")
        super().__init__(table[0].item(), table[-1].item())
        self.last = steps - 1
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)

    def gamma(self, t: Tensor) -> Tensor:
        low, high, fraction = self._neighbouring_levels(t)
        return torch.lerp(low, high, fraction).to(t.dtype)

    def dgamma(self, t: Tensor) -> Tensor:
        low, high, _ = self._neighbouring_levels(t)
        return ((high - low) * self.last).to(t.dtype)

    def t_of(self, gamma: Tensor) -> Tensor:
        return self.timestep(gamma) / self.last

    def timestep(self, gamma: Tensor) -> Tensor:
        """Return diffusers' timestep for ``gamma``: its position in the table, from 0 to T - 1.

        The shape is that of ``gamma``; between two levels the position is a fraction.
        """
        wanted = gamma.double().contiguous()
        upper = torch.searchsorted(self.table, wanted).clamp(1, self.last)
        low, high = self.table[upper - 1], self.table[upper]
        return _snap_to_integer((upper - 1 + (wanted - low) / (high - low)).clamp(0, self.last)).to(
            gamma.dtype
        )

    def stops(self, steps: int) -> Tensor:
        """Return a sampler's times, spaced like diffusers' ``timestep_spacing="trailing"``.

        More than T steps are spaced evenly.
        """
        levels = self.last + 1
        if steps > levels:
            return torch.linspace(1.0, 0.0, steps)
        # diffusers counts timesteps down from T, rounds them and subtracts 1.
        left = levels - torch.arange(steps, dtype=torch.float64) * (levels / steps)
        return ((left.round() - 1) / self.last).float()

    def _neighbouring_levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the levels below and above t and the position of t between them, in double."""
        place = _snap_to_integer(t.double() * self.last)
        below = place.floor().clamp(0, self.last - 1).long()
        return self.table[below], self.table[below + 1], place - below


def _snap_to_integer(position: Tensor) -> Tensor:
    return torch.where((position - position.round()).abs() < NEAR, position.round(), position)
