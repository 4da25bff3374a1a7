r"""Reproducible times and noise for losses and bounds.

Training draws follow from ``(seed, step)`` and belong to the *global* batch, of which each process
takes its slice. Evaluation draws follow from ``(seed, the item's index, the repeat)``. A resumed
run, another number of processes or another batch size therefore sees the same noise.

A model draws on the CPU by ``BatchDraws``, or on the device by ``BlockDraws``.
"""

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor


class Stream(IntEnum):
    """The purpose of random numbers, mixed into their seed: ``hash_seed(seed, Stream.X, ...)``.

    A number never changes once it is in use. Two names may share a number if the numbers hashed
    after it differ, so that no two generators start in the same state.
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
CPU = torch.device("cpu")
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


def seeded_generator(*numbers: int, device: torch.device = CPU) -> torch.Generator:
    """Return a random number generator of a device with the seed ``hash_seed(*numbers)``.

    An accelerator has a single generator, so draw from it before the next call reseeds it.
    """
    return _generator(device).manual_seed(hash_seed(*numbers))


def _generator(device: torch.device) -> torch.Generator:
    if device.type in ("cpu", "meta"):  # "meta" has no generators and takes those of the CPU.
        return torch.Generator()
    return _accelerator_generator(device)


@cache
def _accelerator_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device)


def stratified_times(batch: int, generator: torch.Generator, device: torch.device = CPU) -> Tensor:
    """Draw evenly spaced times in random order: t = (u + i / B) mod 1 with one u (VDM I.1).

    The random order makes an item's time independent of its place in the batch.
    """
    u = torch.rand((), generator=generator, device=device)
    times = (u + torch.arange(batch, device=device) / batch) % 1
    return times[torch.randperm(batch, generator=generator, device=device)]


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
    shape: Sequence[int],
    index: Tensor,
    seed: int,
    repeat: int,
    repeats: int,
    device: torch.device = CPU,
) -> Draw:
    """Return the ``repeat``-th of ``repeats`` draws for the items ``index`` (B,), on a device.

    Times are ``evaluation_times``; the noise of any two (item, repeat) is independent.
    """
    t = evaluation_times(index, seed, repeat, repeats).float().clamp(max=BELOW_ONE)
    noise = item_noise((2, *shape), index, device, seed, Stream.EVALUATION_NOISE, repeat)
    return Draw(t.to(device), noise[:, 0], noise[:, 1])


def item_noise(shape: Sequence[int], index: Tensor, device: torch.device, *numbers: int) -> Tensor:
    """Return noise (B, *shape) that follows from ``(*numbers, item)`` for the items ``index``."""
    noise = torch.empty(len(index), *shape, device=device)
    for row, item in zip(noise, index.tolist(), strict=True):
        row.normal_(generator=seeded_generator(*numbers, item, device=device))
    return noise


def plain_noise(generator: torch.Generator | None = None) -> Noise:
    """Return a noise function that draws from one generator, on the generator's device."""
    device = None if generator is None else generator.device
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=device)


class StepShare(NamedTuple):
    """One process's share of the global ``batch`` of a training step, and the device it is for."""

    batch: int
    seed: int
    step: int
    rank: int
    world: int
    device: torch.device

    @property
    def part(self) -> slice:
        """The positions of the process's items in the global batch."""
        first, last = self.rank * self.batch, (self.rank + 1) * self.batch
        return slice(first // self.world, last // self.world)

    def generator(self, device: torch.device, stream: Stream, *numbers: int) -> torch.Generator:
        """Return a generator on ``device`` for the random numbers of ``stream`` in this step."""
        return seeded_generator(self.seed, stream, self.step, *numbers, device=device)


class BatchDraws:
    """Draws on the CPU: each process draws for the whole global batch and takes its share.

    Numbers of training follow from (seed, step) and an item's place in the global batch, those of
    evaluation from (seed, repeat) and its index. Methods return tensors on the device that needs
    them. ``name``: value of the key ``draws``.
    """

    name = "batch"

    def place(self, device: torch.device) -> torch.device:
        """Return the device on which the numbers for ``device`` are drawn."""
        return CPU

    def step_noise(
        self,
        shape: Sequence[int],
        share: StepShare,
        generator: torch.Generator,
        stream: Stream,
        *numbers: int,
    ) -> Tensor:
        """Return noise (B / W, *shape) of a step, from ``generator``."""
        return torch.randn(share.batch, *shape, generator=generator)[share.part].to(share.device)

    def uniforms(self, share: StepShare, stream: Stream, *numbers: int) -> Tensor:
        """Return numbers in [0, 1) of a step, (B / W,)."""
        place = self.place(share.device)
        generator = share.generator(place, stream, *numbers)
        uniforms = torch.rand(share.batch, generator=generator, device=place)
        return uniforms[share.part].to(share.device)

    def training_draw(
        self, shape: Sequence[int], share: StepShare, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return times (B / W,) and noise (B / W, *shape) of a step.

        Times of the global batch are evenly spaced if ``stratified``, else independent.
        """
        place = self.place(share.device)
        generator = share.generator(place, Stream.TRAINING)
        t = stratified_times(share.batch, generator, place)[share.part].to(share.device)
        eps = self.step_noise(shape, share, generator, Stream.TRAINING)
        if not stratified:
            t = self.uniforms(share, Stream.TIMES)
        return t, eps

    def augmentation_uniforms(self, share: StepShare) -> Callable[..., Tensor]:
        """Return a function that draws numbers in [0, 1) for a step's augmentations.

        Each call ``draw(*shape)`` returns further numbers, (B / W, *shape).
        """
        generator = share.generator(CPU, Stream.AUGMENTATION)

        def draw(*shape: int) -> Tensor:
            return torch.rand(share.batch, *shape, generator=generator)[share.part].to(share.device)

        return draw

    def ensemble_members(self, members: int, share: StepShare) -> Tensor:
        """Assign the items of a step at random to ``members`` in equal shares, (B / W,) on the CPU.

        If ``members`` does not divide the global batch, the first members get one item more.
        """
        order = torch.randperm(share.batch, generator=share.generator(CPU, Stream.MEMBERS))
        return order[share.part] % members

    def training_noise(self, share: StepShare) -> Noise:
        """Return a function that draws the noise of a training step for one latent after another.

        It is called once for each level of the latent hierarchy, in order, with the latent's shape.
        """
        generator = share.generator(self.place(share.device), Stream.LATENT_TRAINING)
        levels = count()

        def draw(shape: Sequence[int]) -> Tensor:
            numbers = Stream.LATENT_TRAINING, next(levels)
            return self.step_noise(shape[1:], share, generator, *numbers)

        return draw

    def evaluation_draw(
        self,
        shape: Sequence[int],
        index: Tensor,
        seed: int,
        repeat: int,
        repeats: int,
        device: torch.device,
    ) -> Draw:
        """Return the ``repeat``-th evaluation draw for the items ``index`` (B,), on ``device``."""
        draw = evaluation_draw(shape, index, seed, repeat, repeats, self.place(device))
        return Draw(*(part.to(device) for part in draw))

    def evaluation_noise(
        self, index: Tensor, seed: int, repeat: int, device: torch.device
    ) -> Noise:
        """Return a noise function for latents of the items ``index`` (B,), whatever their batch.

        The noise of an item follows from (seed, its index, the repeat).
        """
        numbers = seed, Stream.LATENT_EVALUATION, repeat
        generators = [seeded_generator(*numbers, item) for item in index.tolist()]

        def draw(shape: Sequence[int]) -> Tensor:
            rows = [torch.randn(tuple(shape[1:]), generator=item) for item in generators]
            return torch.stack(rows).to(device)

        return draw


BATCH_DRAWS = BatchDraws()
