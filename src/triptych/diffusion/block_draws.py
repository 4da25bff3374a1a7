r"""Times and noise drawn on the device, at a cost that follows a process's own items.

Noise of a training step is drawn in blocks of 16 items of the global batch. A block follows from
``(seed, stream, step, block)``, and a process draws those that its share touches, in whole: any
number of processes sees the same noise. Times, members and dropout of conditions are a number an
item, which every process draws for the global batch.
"""

from collections.abc import Sequence
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
    """Draw on the device: noise of a step in blocks, noise of evaluation item by item."""

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
        # Draw whole blocks, as a generator's numbers depend on how many are drawn at once.
        device, first, last = share.device, share.part.start, share.part.stop
        start, stop = first // BLOCK, -(-last // BLOCK)
        noise = torch.empty((stop - start) * BLOCK, *shape, device=device)
        for block, rows in enumerate(noise.split(BLOCK), start):
            rows.normal_(generator=share.generator(device, stream, *numbers, block))
        return noise[first - start * BLOCK : last - start * BLOCK]

    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        levels = count()

        def draw(shape: Sequence[int]) -> Tensor:
            numbers = seed, Stream.LATENT_EVALUATION, repeat, next(levels)
            return item_noise(shape[1:], index, device, *numbers)

        return draw


STREAMS: dict[str, BatchDraws] = {draws.name: draws for draws in (BATCH_DRAWS, BlockDraws())}
