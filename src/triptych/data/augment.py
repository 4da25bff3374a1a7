"""Augment training images, anew at every step; validation and test images stay as they are.

The bound that a run reports is of the images as they are. What is drawn follows from the seed, the
step and the place in the *global* batch, so a resumed run and another number of processes change
the same images.

A model would also draw changed images. It does not if its condition describes what was done to each
item (``told``), and if it draws items to which nothing was done (Karras et al. 2020, 2022:
non-leaking augmentation).
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.data.batch import Batch
from triptych.declare import Count, Gt, Le, Share, Unit, declared
from triptych.diffusion.condition import AUGMENTATION, Condition, Part, find_part
from triptych.diffusion.draws import Stream, hash_seed, seeded_generator
from triptych.errors import UserError

Uniform = Callable[..., Tensor]


class Augmentation:
    """``augmentation(x, uniform)`` -> changed x (B, C, H, W).

    ``uniform()`` draws (B,) numbers in [0, 1), ``uniform(*shape)`` (B, *shape).

    Attributes:
        part: the part of the condition that is changed in place of the item, None: the item.
        told: whether what was done is a part of the network's condition.
        numbers: of that part, each in [-1, 1], all 0 for an item as it is.
    """

    part: str | None = None
    told, numbers = False, 0

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        return self.apply(x, uniform)[0]

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Return changed x, and the numbers (B, numbers) that describe the change.

        Only a class that can be ``told`` needs it.
        """
        raise NotImplementedError("apply() is not defined")


@declared("augmentation.flip")
class Flip(Augmentation):
    """Exchange left and right with probability ``p``.

    ``told``: 1 for such an item.
    """

    numbers = 1

    def __init__(self, p: Share = 0.5, told: bool = False) -> None:
        self.p, self.told = p, told

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        done = uniform() < self.p
        return torch.where(done.view(-1, 1, 1, 1), x.flip(-1), x), done.to(x).unsqueeze(1)


@declared("augmentation.crop")
class Crop(Augmentation):
    """Move an image by up to ``padding`` pixels in each direction, with probability ``p``.

    The border is mirrored.
    ``told``: by how much, in paddings down and to the right.
    """

    numbers = 2

    def __init__(
        self, padding: Annotated[Count, Unit("pixels")] = 4, p: Share = 1.0, told: bool = False
    ) -> None:
        self.padding, self.p, self.told = padding, p, told

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        wide = pad(x, (self.padding,) * 4, mode="reflect")
        shifts = 2 * self.padding + 1
        down = (uniform() * shifts).long().view(-1, 1)
        right = (uniform() * shifts).long().view(-1, 1)
        if self.p < 1:
            stays = (uniform() >= self.p).view(-1, 1)
            down = torch.where(stays, self.padding, down)
            right = torch.where(stays, self.padding, right)
        rows = (down + torch.arange(height)).view(len(x), 1, height, 1)
        columns = (right + torch.arange(width)).view(len(x), 1, 1, width)
        item = torch.arange(len(x)).view(-1, 1, 1, 1)
        moved = 1 - torch.cat([down, right], 1).to(x) / self.padding
        return wide[item, torch.arange(x.shape[1]).view(1, -1, 1, 1), rows, columns], moved


@declared("augmentation.low")
class ConditioningNoise(Augmentation):
    r"""Noise an image of the condition, and give the condition the noise level.

    At the level s, z = cos(pi s / 2) low + sin(pi s / 2) eps. A stage that was trained on noised
    images tolerates the errors of the stage before it (Ho et al. 2022, cascades, sec. 4,
    "conditioning augmentation"; Saharia et al. 2022, Imagen, sec. 2.4). The bound is at s = 0.

    Args:
        part: the part of the condition, an image.
        p: probability that an item's image is noised, by s uniform in (0, most].
        most: the largest s; 1 is noise alone.
    """

    told, numbers = True, 1

    def __init__(
        self, part: str = "low", p: Share = 0.5, most: Annotated[float, Gt(0), Le(1)] = 0.5
    ) -> None:
        self.part, self.p, self.most = part, p, most

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        level = torch.where(uniform() < self.p, self.most * (1 - uniform()), 0.0)
        u = uniform(*x.shape[1:]).clamp(2**-25, 1 - 2**-24)  # the quantiles at 0 and 1 are infinite
        return self.at(x, level, math.sqrt(2) * torch.erfinv(2 * u - 1)), level.unsqueeze(1)

    @staticmethod
    def at(x: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """Noise x (B, C, H, W) to levels s (B,): z = cos(pi s / 2) x + sin(pi s / 2) eps."""
        angle = (math.pi / 2 * level).view(-1, 1, 1, 1)
        return angle.cos() * x + angle.sin() * eps


def augment_batch(
    batch: Batch, steps: Sequence[Augmentation], seed: int, step: int, rank: int = 0, world: int = 1
) -> Batch:
    """Return a training batch after all ``steps``.

    If a step is ``told``, the condition describes what was done to each item.
    """
    part_seed = hash_seed(seed, Stream.PART_AUGMENTATION)
    all_numbers = []
    for name, changes in group_by_part(steps).items():
        if name is None:
            x, numbers = augment(batch.x, changes, seed, step, rank, world)
            batch = batch._replace(x=x)
        else:
            part = find_part(batch.condition, name)
            if batch.condition is None or part is None:
                raise UserError(
                    f"augmentation: the condition has no part {name!r}; set augmentation=none"
                )
            value, numbers = augment(part.value, changes, part_seed, step, rank, world)
            changed = Condition(**{name: Part(value, part.present, part.mask)})
            batch = batch._replace(condition=batch.condition.merge(changed))
        all_numbers.append(numbers)
    numbers = torch.cat(all_numbers, 1)
    if not numbers.shape[1]:
        return batch
    done = Condition(**{AUGMENTATION: Part(numbers, numbers.any(1))})
    return batch._replace(condition=done.merge(batch.condition))


def group_by_part(steps: Sequence[Augmentation]) -> dict[str | None, list[Augmentation]]:
    """Group changes by the part of the condition that they change; None: the item itself."""
    groups: dict[str | None, list[Augmentation]] = {}
    for change in steps:
        groups.setdefault(change.part, []).append(change)
    return groups


def augment(
    x: Tensor, steps: Sequence[Augmentation], seed: int, step: int, rank: int = 0, world: int = 1
) -> tuple[Tensor, Tensor]:
    """Augment images by all ``steps`` in turn; return them with the numbers of what was done.

    ``x`` (B, C, H, W): this process's share of the batch of ``step``. The numbers (B, numbers)
    are of the steps that are ``told``.
    """
    generator = seeded_generator(seed, Stream.AUGMENTATION, step)
    share = slice(rank * len(x), (rank + 1) * len(x))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(x) * world, *shape, generator=generator)[share]

    done = [x.new_zeros(len(x), 0)]
    for change in steps:
        if change.told:
            x, numbers = change.apply(x, uniform)
            done.append(numbers)
        else:
            x = change(x, uniform)
    return x, torch.cat(done, 1)


def noise_condition_numbers(steps: Sequence[Augmentation], part: str, level: float) -> Tensor:
    """Return the condition's part "augmentation", (numbers,), when ``part`` alone was noised.

    ``level``: to which level.
    """
    numbers = [torch.zeros(0)]
    for changes in group_by_part(steps).values():
        for change in changes:
            if not change.told:
                continue
            done = torch.zeros(change.numbers)
            if isinstance(change, ConditioningNoise) and change.part == part:
                done += level
            numbers.append(done)
    return torch.cat(numbers)


def n_condition_numbers(steps: Sequence[Augmentation]) -> int:
    """Count the numbers with which a condition describes what was done to an item."""
    return sum(change.numbers for change in steps if change.told)
