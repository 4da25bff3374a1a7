r"""Reproducible times and noise for losses and bounds.

Training draws follow from ``(seed, step)`` and belong to the *global* batch, of which each process
takes its slice. Evaluation draws follow from ``(seed, the item's index, the repeat)``. A resumed
run, another number of processes or another batch size therefore sees the same noise.

A model asks its ``Draws``: ``BatchDraws`` draws with the functions of this file, on the CPU;
``diffusion.block_draws`` draws on the device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(IntEnum):
    """The purpose of random numbers, mixed into their seed: ``hash_seed(seed, Stream.X, ...)``.

    A number never changes once it is in use. Two names may share a number if different things are
    mixed in after it, so that no two generators start in the same state.
    """

    TRAINING = 1  # times and noise of a training step
    EVALUATION_TIMES = 2
    EVALUATION_NOISE = 3
    ORDER = 4  # order of the training items in an epoch
    DROPOUT = 5  # dropout of units in a training step
    POINTS = 5  # generated data
    CALIBRATION = 6  # noise for the measurement of an optimal reverse variance
    PROBES = 8  # random vectors for the estimate of a trace
    DEQUANTISATION = 9
    LATENT_TRAINING = 10
    LATENT_EVALUATION = 11
    ENDS = 12  # noise for the bound's end terms, if endpoints are trained
    LABELS = 13  # dropout of conditions
    MEASURED_SAMPLES = 14
    TRUE_POINTS = 15  # true points that samples are compared with
    CONTROL = 16  # draws for the fit of control variates
    POSTERIOR_MEAN = 16
    SPREAD = 17  # noise for the measurement of a reference's spread
    SAMPLES = 17  # samples of ``triptych-sample``
    METRICS = 19  # draws of a user's metrics
    TIMES = 20  # independently drawn times t of a training step
    AUGMENTATION = 21  # augmentation of the items of a step
    PART_AUGMENTATION = 22  # augmentation of a part of their conditions
    MEMBERS = 23  # assignment of items to the members of a network


Noise = Callable[[Sequence[int]], Tensor]  # shape (B, *event) -> standard normal numbers
BELOW_ONE = 1 - 2**-24  # the largest time in float32
_GOLDEN = (math.sqrt(5) - 1) / 2


class Draw(NamedTuple):
    """One draw for each of B items.

    ``t``: times (B,) in [0, 1). ``eps``: noise of the diffusion term, ``eps_0``: noise of z_0, (B,
    *event) each.
    """

    t: Tensor
    eps: Tensor
    eps_0: Tensor


def hash_seed(*numbers: int) -> int:
    """Return a 63-bit seed that is a hash of the integers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + (number & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a random number generator on the CPU with the seed ``hash_seed(*numbers)``."""
    return torch.Generator().manual_seed(hash_seed(*numbers))


def stratified_times(
    batch: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Draw evenly spaced times in random order: t = (u + i / B) mod 1 with one u (VDM I.1).

    The random order makes an item's time independent of its place in the batch.
    """
    u = torch.rand((), generator=generator, device=device)
    times = (u + torch.arange(batch, device=device) / batch) % 1
    return times[torch.randperm(batch, generator=generator, device=device)]


def training_draw(
    shape: Sequence[int],
    batch: int,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    stratified: bool = True,
) -> tuple[Tensor, Tensor]:
    """Draw times and noise for one process's slice of a training step's global batch.

    Returns t (B / W,) and eps (B / W, *shape) on the CPU, where W is the number of processes.
    """
    generator = seeded_generator(seed, Stream.TRAINING, step)
    t = stratified_times(batch, generator)
    if not stratified:
        t = torch.rand(batch, generator=seeded_generator(seed, Stream.TIMES, step))
    eps = torch.randn(batch, *shape, generator=generator)
    part = slice(rank * batch // world, (rank + 1) * batch // world)
    return t[part], eps[part]


def assign_ensemble_members(
    members: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1
) -> Tensor:
    """Assign the items of a step's global batch at random to ``members`` in equal shares.

    Returns the member of each item in the process's slice, (B / W,). If ``members`` does not divide
    the batch, the first members get one item more.
    """
    order = torch.randperm(batch, generator=seeded_generator(seed, Stream.MEMBERS, step))
    return order[rank * batch // world : (rank + 1) * batch // world] % members


def evaluation_times(index: Tensor, seed: int, repeat: int, repeats: int) -> Tensor:
    """Return the times of one repeat for the items ``index`` (B,), in double on the CPU.

    t = (golden * index + u(seed) + repeat / repeats) mod 1 with the golden ratio. The draws of an
    item are spread evenly over [0, 1), and so are the items; over seeds each time is uniform.
    """
    return (
        index.double() * _GOLDEN
        + hash_seed(seed, Stream.EVALUATION_TIMES) / 2**63
        + repeat / repeats
    ) % 1


def evaluation_draw(
    shape: Sequence[int], index: Tensor, seed: int, repeat: int, repeats: int
) -> Draw:
    """Return the ``repeat``-th of ``repeats`` draws for the items ``index`` (B,), on the CPU.

    Times are ``evaluation_times``; the noise of any two (item, repeat) is independent.
    """
    t = evaluation_times(index, seed, repeat, repeats)
    noise = torch.empty(len(index), 2, *shape)
    for row, item in zip(noise, index.tolist(), strict=True):
        generator = seeded_generator(seed, Stream.EVALUATION_NOISE, repeat, item)
        torch.randn(2, *shape, generator=generator, out=row)
    return Draw(t.float().clamp(max=BELOW_ONE), noise[:, 0], noise[:, 1])


def plain_noise(generator: torch.Generator | None = None) -> Noise:
    """Return a noise function that draws from one generator, on the generator's device."""
    device = None if generator is None else generator.device
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=device)


def training_noise(seed: int, step: int, rank: int = 0, world: int = 1) -> Noise:
    """Return a noise function for one process's slice of the global batch at one step.

    The noise follows from (seed, step).
    """
    generator = seeded_generator(seed, Stream.LATENT_TRAINING, step)

    def draw(shape: Sequence[int]) -> Tensor:
        batch = shape[0]
        return torch.randn(batch * world, *shape[1:], generator=generator)[
            rank * batch : (rank + 1) * batch
        ]

    return draw


def evaluation_noise(index: Tensor, seed: int, repeat: int) -> Noise:
    """Return a noise function for the items ``index`` (B,), whatever batch they are in.

    The noise of an item follows from (seed, its index, the repeat).
    """
    generators = [
        seeded_generator(seed, Stream.LATENT_EVALUATION, repeat, i) for i in index.tolist()
    ]

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.stack(
            [torch.randn(tuple(shape[1:]), generator=generator) for generator in generators]
        )

    return draw


class StepShare(NamedTuple):
    """One process's share of the global ``batch`` of a training step, and where it is needed."""

    batch: int
    seed: int
    step: int
    rank: int
    world: int
    device: torch.device

    @property
    def part(self) -> slice:
        """The places of its items in the global batch."""
        return slice(
            self.rank * self.batch // self.world, (self.rank + 1) * self.batch // self.world
        )


class Draws(ABC):
    """The random numbers of training and evaluation, on the device that needs them.

    Those of training follow from (seed, step) and an item's place in the global batch; those of
    evaluation from (seed, repeat) and the item's index. ``name``: value of the key ``draws``.
    """

    name: str

    @abstractmethod
    def training_draw(
        self, shape: Sequence[int], share: StepShare, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return times (B / W,) and noise (B / W, *shape) of a training step."""

    @abstractmethod
    def ensemble_members(self, members: int, share: StepShare) -> Tensor:
        """Return the member of a network, out of ``members``, that each item trains, (B / W,)."""

    @abstractmethod
    def condition_uniforms(self, share: StepShare, *part: int) -> Tensor:
        """Return numbers in [0, 1), (B / W,), that decide which items lose a condition part."""

    @abstractmethod
    def training_noise(self, share: StepShare) -> Noise:
        """Return a noise function for the latents of a training step."""

    @abstractmethod
    def evaluation_draw(
        self,
        shape: Sequence[int],
        index: Tensor,
        seed: int,
        repeat: int,
        repeats: int,
        device: torch.device,
    ) -> Draw:
        """Return the ``repeat``-th of ``repeats`` draws for the items ``index`` (B,)."""

    @abstractmethod
    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        """Return a noise function for the latents of the items ``index`` (B,)."""


class BatchDraws(Draws):
    """Draw on the CPU: each process draws the whole global batch, and takes its share."""

    name = "batch"

    def training_draw(
        self, shape: Sequence[int], share: StepShare, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        batch, seed, step, rank, world, device = share
        t, eps = training_draw(shape, batch, seed, step, rank, world, stratified)
        return t.to(device), eps.to(device)

    def ensemble_members(self, members: int, share: StepShare) -> Tensor:
        *place, device = share
        return assign_ensemble_members(members, *place).to(device)

    def condition_uniforms(self, share: StepShare, *part: int) -> Tensor:
        generator = seeded_generator(share.seed, Stream.LABELS, share.step, *part)
        return torch.rand(share.batch, generator=generator)[share.part].to(share.device)

    def training_noise(self, share: StepShare) -> Noise:
        noise = training_noise(share.seed, share.step, share.rank, share.world)
        return lambda shape: noise(shape).to(share.device)

    def evaluation_draw(
        self,
        shape: Sequence[int],
        index: Tensor,
        seed: int,
        repeat: int,
        repeats: int,
        device: torch.device,
    ) -> Draw:
        draw = evaluation_draw(shape, index, seed, repeat, repeats)
        return Draw(*(part.to(device) for part in draw))

    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        noise = evaluation_noise(index, seed, repeat)
        return lambda shape: noise(shape).to(device)


BATCH_DRAWS = BatchDraws()
