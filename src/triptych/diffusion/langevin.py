"""Langevin dynamics: sampling with nothing but a score (Song & Ermon 2019; tutorial sec. "Score-based")."""

from collections.abc import Callable

import torch
from torch import Tensor


def langevin(
    score: Callable[[Tensor], Tensor],
    x: Tensor,
    size: Tensor | float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Repeat x <- x + size / 2 score(x) + sqrt(size) noise ``steps`` times, from x (B, *event).

    Its stationary law tends to the density of ``score`` as ``size`` -> 0; for a Gaussian of variance s^2 it
    is a Gaussian of s^2 / (1 - size / (4 s^2)). But it crosses a gap of low density only in exponential
    time: whatever share of the points started in a mode's basin stays there.
    """
    size = torch.as_tensor(size, dtype=x.dtype, device=x.device)
    root = size.sqrt()
    for _ in range(steps):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = torch.addcmul(x, score(x), 0.5 * size).addcmul_(noise, root)
    return x
