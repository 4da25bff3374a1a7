r"""Random numbers drawn on the device, at a cost in proportion to a process's own items.

Noise of a training step and numbers for augmentations are drawn in blocks of 16 items of the global
batch. The numbers of a block follow from ``(seed, stream, step, block)``. A process draws each
block that contains one of its items as a whole, so the numbers do not depend on the number of
processes. Times, members and dropout of conditions need only one number per item, which every
process draws for the global batch.
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

# Items per block: large enough for few calls in a step, and small enough that few numbers are drawn
# for items of other processes.
BLOCK = 16


class BlockDraws(BatchDraws):
    """Draws on the device: in blocks of items for a training step, by item in evaluation."""

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
