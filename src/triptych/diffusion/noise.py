"""Noise for a path of latents, asked for level by level; what it follows from is ``draws``' rule."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .draws import Stream, seeded

Noise = Callable[[Sequence[int]], Tensor]  # the next level's shape (B, *event) -> standard normal


def plain_noise(generator: torch.Generator | None = None) -> Noise:
    """One stream for all items, drawn where the generator is."""
    device = None if generator is None else generator.device
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=device)


def training_noise(seed: int, step: int, rank: int = 0, world: int = 1) -> Noise:
    """Of one process's slice of the global batch at one step, from (seed, step)."""
    generator = seeded(seed, Stream.LATENT_TRAINING, step)

    def draw(shape: Sequence[int]) -> Tensor:
        batch = shape[0]
        return torch.randn(batch * world, *shape[1:], generator=generator)[rank * batch : (rank + 1) * batch]

    return draw


def evaluation_noise(index: Tensor, seed: int, repeat: int) -> Noise:
    """For the items ``index`` (B,), each from (seed, its index, the repeat), whatever batch it comes in."""
    generators = [seeded(seed, Stream.LATENT_EVALUATION, repeat, i) for i in index.tolist()]

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators])

    return draw
