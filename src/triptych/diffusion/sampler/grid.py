r"""Where a sampler stops on its way down: grids of gamma between a schedule's endpoints.

``gamma``: equal steps of log SNR. ``time``: equal steps of the schedule's t. ``karras`` (Karras et al. 2022,
eq. 5): equal steps of ``s^{1 / rho}``, with ``s = sigma / alpha = e^{gamma / 2}``; rho = 1 is equal steps of
s, rho -> infinity is ``gamma``.
"""

import torch
from torch import Tensor

from ..schedule import Schedule

GRIDS = ("gamma", "time", "karras")


def grid_gammas(
    schedule: Schedule, steps: int, grid: str, rho: float, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Return (steps + 1,) gammas from gamma(1) down to gamma(0); (steps,) if ``denoised``."""
    if grid == "time":
        return schedule.gamma(schedule.stops(steps).to(device, dtype))
    t = torch.linspace(1.0, 0.0, steps + (not schedule.denoised), device=device, dtype=dtype)
    high, low = schedule.gamma(t[[0, -1]])
    if grid == "gamma":
        gammas: Tensor = low + (high - low) * t
        return gammas
    root = torch.exp(0.5 / rho * torch.stack([low, high]))
    gammas = 2 * rho * torch.log(root[0] + (root[1] - root[0]) * t)
    gammas[0], gammas[-1] = high, low  # exactly, whatever exp and log lose
    return gammas
