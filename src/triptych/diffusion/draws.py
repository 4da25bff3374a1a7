r"""Times and noise: where the randomness of a loss or a bound comes from, and what it follows from.

Training draws follow from ``(seed, step)`` and belong to the *global* batch, of which a process takes its
slice; evaluation draws follow from ``(seed, the item's index, the repeat)``. So a resumed run, another
number of processes or another batch size sees the same noise.
"""

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(IntEnum):
    """Which random numbers a seed is for: ``mix(seed, Stream.X, ...)``; a number is for ever.

    Names of one number differ in what is mixed after it, so no two generators begin alike.
    """

    TRAINING = 1  # times and noise of a step
    EVALUATION_TIMES = 2
    EVALUATION_NOISE = 3
    ORDER = 4  # order of the training items in an epoch
    DROPOUT = 5  # units that a step drops
    POINTS = 5  # data that a formula draws
    CALIBRATION = 6  # noise that measures an optimal reverse variance
    PROBES = 8  # vectors that estimate a trace
    DEQUANTISATION = 9
    LATENT_TRAINING = 10
    LATENT_EVALUATION = 11
    ENDS = 12  # noise of the bound's ends, where endpoints are trained
    LABELS = 13  # conditions that training leaves out
    MEASURED_SAMPLES = 14
    TRUE_POINTS = 15  # true sets beside measured samples
    CONTROL = 16  # draws to which control variates are fitted
    POSTERIOR_MEAN = 16
    SPREAD = 17  # noise over which a reference's spread is measured
    SAMPLES = 17  # samples of ``triptych-sample``
    METRICS = 19  # draws of a user's metrics
    TIMES = 20  # independent times of a step
    AUGMENTATION = 21  # changes of a step's items
    PART_AUGMENTATION = 22  # changes of a part of their conditions
    MEMBERS = 23  # which member of a network reads which item


Noise = Callable[[Sequence[int]], Tensor]  # shape (B, *event) -> standard normal numbers
BELOW_ONE = 1 - 2**-24  # the largest time in float32
_GOLDEN = (math.sqrt(5) - 1) / 2


class Draw(NamedTuple):
    """One draw a sample: t (B,) in [0, 1); eps for the diffusion term and eps_0 for z_0, (B, *event)."""

    t: Tensor
    eps: Tensor
    eps_0: Tensor


def mix(*numbers: int) -> int:
    """Return a 63-bit seed from integers: equal for equal integers, unrelated otherwise (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + (number & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator of random numbers on the CPU that follow from ``mix(*numbers)``."""
    return torch.Generator().manual_seed(mix(*numbers))


def stratified_times(batch: int, generator: torch.Generator) -> Tensor:
    """Draw t = (u + i / B) mod 1 with one u, permuted: neighbours in the data meet any t (VDM I.1)."""
    u = torch.rand((), generator=generator)
    times = (u + torch.arange(batch) / batch) % 1
    return times[torch.randperm(batch, generator=generator)]


def training_draw(
    shape: Sequence[int],
    batch: int,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    stratified: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw (t, eps) of a process's slice of a step's global batch, (B / W,), (B / W, *shape), on the CPU."""
    generator = seeded(seed, Stream.TRAINING, step)
    t = stratified_times(batch, generator)
    if not stratified:
        t = torch.rand(batch, generator=seeded(seed, Stream.TIMES, step))
    eps = torch.randn(batch, *shape, generator=generator)
    part = slice(rank * batch // world, (rank + 1) * batch // world)
    return t[part], eps[part]


def training_members(members: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """Deal a step's global batch to ``members`` in equal random shares; return a process's slice, (B / W,).

    Where ``members`` does not divide the batch, the first of them have one item more.
    """
    order = torch.randperm(batch, generator=seeded(seed, Stream.MEMBERS, step))
    return order[rank * batch // world : (rank + 1) * batch // world] % members


def evaluation_times(index: Tensor, seed: int, repeat: int, repeats: int) -> Tensor:
    """Return t = (golden * index + u(seed) + repeat / repeats) mod 1, (B,) double, on the CPU.

    Each item's draws are spread evenly over [0, 1), and so are the items; each is uniform over seeds.
    """
    return (index.double() * _GOLDEN + mix(seed, Stream.EVALUATION_TIMES) / 2**63 + repeat / repeats) % 1


def evaluation_draw(shape: Sequence[int], index: Tensor, seed: int, repeat: int, repeats: int) -> Draw:
    """Return the ``repeat``-th of ``repeats`` draws for the items ``index`` (B,), on the CPU.

    Times are ``evaluation_times``; the noise of any two (item, repeat) is independent.
    """
    t = evaluation_times(index, seed, repeat, repeats)
    noise = torch.empty(len(index), 2, *shape)
    for row, item in zip(noise, index.tolist(), strict=True):
        generator = seeded(seed, Stream.EVALUATION_NOISE, repeat, item)
        torch.randn(2, *shape, generator=generator, out=row)
    return Draw(t.float().clamp(max=BELOW_ONE), noise[:, 0], noise[:, 1])


def plain_noise(generator: torch.Generator | None = None) -> Noise:
    """Return noise of one stream for all items, drawn on the generator's device."""
    device = None if generator is None else generator.device
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=device)


def training_noise(seed: int, step: int, rank: int = 0, world: int = 1) -> Noise:
    """Return noise for one process's slice of the global batch at one step, from (seed, step)."""
    generator = seeded(seed, Stream.LATENT_TRAINING, step)

    def draw(shape: Sequence[int]) -> Tensor:
        batch = shape[0]
        return torch.randn(batch * world, *shape[1:], generator=generator)[rank * batch : (rank + 1) * batch]

    return draw


def evaluation_noise(index: Tensor, seed: int, repeat: int) -> Noise:
    """Return noise for items ``index`` (B,), each from (seed, its index, the repeat) whatever its batch."""
    generators = [seeded(seed, Stream.LATENT_EVALUATION, repeat, i) for i in index.tolist()]

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators])

    return draw
