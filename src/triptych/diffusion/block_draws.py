r"""Times and noise drawn on the device, at a cost that follows a process's own items.

Noise of a training step is drawn in blocks of 16 items of the global batch. A block follows from
``(seed, stream, step, block)``, and a process draws those that its share touches, in whole: any
number of processes sees the same noise. Times, members and dropout of conditions are a number an
item, which every process draws for the global batch.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count

import torch
from torch import Tensor

from .draws import (
    BATCH_DRAWS,
    BELOW_ONE,
    Draw,
    Draws,
    Noise,
    StepShare,
    Stream,
    evaluation_times,
    hash_seed,
    stratified_times,
)

BLOCK = 16  # items; a generator's kernel is then long enough to hide the call from the CPU


class BlockDraws(Draws):
    """Draw on the device: noise of training in blocks, noise of evaluation for each item."""

    name = "blocks"

    def training_draw(
        self, shape: Sequence[int], share: StepShare, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        batch, seed, step, *_, device = share
        if stratified:
            generator = _seeded(device, seed, Stream.TRAINING, step)
            t = stratified_times(batch, generator, device)
        else:
            t = _uniforms(share, Stream.TIMES)
        return t[share.part], block_noise(shape, share, Stream.TRAINING)

    def ensemble_members(self, members: int, share: StepShare) -> Tensor:
        generator = _seeded(share.device, share.seed, Stream.MEMBERS, share.step)
        order = torch.randperm(share.batch, generator=generator, device=share.device)
        return order[share.part] % members

    def condition_uniforms(self, share: StepShare, *part: int) -> Tensor:
        return _uniforms(share, Stream.LABELS, *part)[share.part]

    def training_noise(self, share: StepShare) -> Noise:
        levels = count()  # each call draws the noise of a further level of latents
        return lambda shape: block_noise(shape[1:], share, Stream.LATENT_TRAINING, next(levels))

    def evaluation_draw(
        self,
        shape: Sequence[int],
        index: Tensor,
        seed: int,
        repeat: int,
        repeats: int,
        device: torch.device,
    ) -> Draw:
        t = evaluation_times(index, seed, repeat, repeats).float().clamp(max=BELOW_ONE)
        seeds = seed, Stream.EVALUATION_NOISE, repeat
        noise = item_noise((2, *shape), index, device, *seeds)
        return Draw(t.to(device), noise[:, 0], noise[:, 1])

    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        levels = count()
        seeds = seed, Stream.LATENT_EVALUATION, repeat
        return lambda shape: item_noise(shape[1:], index, device, *seeds, next(levels))


STREAMS: dict[str, Draws] = {draws.name: draws for draws in (BATCH_DRAWS, BlockDraws())}


def block_noise(shape: Sequence[int], share: StepShare, stream: Stream, *more: int) -> Tensor:
    """Return standard normal noise (B / W, *shape) of a process's share of a training step.

    Whole blocks are drawn, as a generator's numbers depend on how many are drawn at once.
    """
    first, last = share.part.start, share.part.stop
    start, stop = first // BLOCK, -(-last // BLOCK)
    noise = torch.empty((stop - start) * BLOCK, *shape, device=share.device)
    for block, rows in enumerate(noise.split(BLOCK), start):
        seeds = share.seed, stream, share.step, *more, block
        rows.normal_(generator=_seeded(share.device, *seeds))
    return noise[first - start * BLOCK : last - start * BLOCK]


def item_noise(shape: Sequence[int], index: Tensor, device: torch.device, *seeds: int) -> Tensor:
    """Return standard normal noise (B, *shape) of the items ``index`` (B,), whatever their batch.

    An item's noise follows from ``(*seeds, item)``.
    """
    noise = torch.empty(len(index), *shape, device=device)
    for row, item in zip(noise, index.tolist(), strict=True):
        row.normal_(generator=_seeded(device, *seeds, item))
    return noise


def _uniforms(share: StepShare, stream: Stream, *more: int) -> Tensor:
    """Return a number in [0, 1) for each item of the global batch."""
    generator = _seeded(share.device, share.seed, stream, share.step, *more)
    return torch.rand(share.batch, generator=generator, device=share.device)


@cache
def _generator(device: torch.device) -> torch.Generator:
    """Return the one generator of a device, which is seeded before each use."""
    if device.type == "meta":  # It has no generators of its own and takes one of the CPU.
        return torch.Generator()
    return torch.Generator(device)


def _seeded(device: torch.device, *numbers: int) -> torch.Generator:
    return _generator(device).manual_seed(hash_seed(*numbers))
