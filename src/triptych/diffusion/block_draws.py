r"""Random numbers drawn where they are needed, at a cost that follows a process's own items.

Noise of a training step and numbers for augmentations are drawn in blocks of 16 items of the global
batch. A block follows from ``(seed, stream, step, block)``, and a process draws those that its
share touches, in whole: any number of processes sees the same numbers. Times, members and dropout
of conditions are a number an item, which every process draws for the global batch.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from .draws import (
    BATCH_DRAWS,
    BatchDraws,
    Noise,
    StepShare,
    Stream,
    item_noise,
)

BLOCK = 16  # items: few calls a step, and few numbers that only other processes need


class BlockDraws(BatchDraws):
    """Draw on the device: a step's noise and augmentations in blocks, evaluation item by item."""

    name = "blocks"

    def place(self, device: torch.device) -> torch.device:
        return device

    def step_noise(
        self,
        shape: Sequence[int],
        share: StepShare,
        generator: torch.Generator,
        stream: Stream,
        *numbers: int,
    ) -> Tensor:
        return draw_blocks(Tensor.normal_, shape, share, stream, *numbers)

    def augmentation_uniforms(self, share: StepShare) -> Callable[..., Tensor]:
        calls = count()

        def draw(*shape: int) -> Tensor:
            return draw_blocks(Tensor.uniform_, shape, share, Stream.AUGMENTATION, next(calls))

        return draw

    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        levels = count()

        def draw(shape: Sequence[int]) -> Tensor:
            numbers = seed, Stream.LATENT_EVALUATION, repeat, next(levels)
            return item_noise(shape[1:], index, device, *numbers)

        return draw


def draw_blocks(
    fill: Callable[..., Tensor],
    shape: Sequence[int],
    share: StepShare,
    stream: Stream,
    *numbers: int,
) -> Tensor:
    """Return a step's numbers (B / W, *shape), drawn on the device by ``fill(rows, generator=)``.

    Whole blocks are drawn, as a generator's numbers depend on how many are drawn at once.
    """
    device, first, last = share.device, share.part.start, share.part.stop
    start, stop = first // BLOCK, -(-last // BLOCK)
    drawn = torch.empty((stop - start) * BLOCK, *shape, device=device)
    for block, rows in enumerate(drawn.split(BLOCK), start):
        fill(rows, generator=share.generator(device, stream, *numbers, block))
    return drawn[first - start * BLOCK : last - start * BLOCK]


STREAMS: dict[str, BatchDraws] = {draws.name: draws for draws in (BATCH_DRAWS, BlockDraws())}
