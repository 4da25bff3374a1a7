"""Augment training images, anew at every step; validation and test images are never augmented.

So the bound that a run reports is that of original images. Random numbers follow from the seed, the
step and the position in the *global* batch, so neither a resume nor the number of processes changes
them.

A model that trains on augmented images also draws augmented samples, unless its condition describes
each item's augmentation (``told``) and samples are drawn with the condition of an original item
(non-leaking augmentation, Karras et al. 2020, 2022).
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
from triptych.diffusion.draws import BATCH_DRAWS, CPU, BatchDraws, StepShare, Stream, hash_seed
from triptych.errors import UserError

Uniform = Callable[..., Tensor]  # shape of one item -> uniform random numbers (B, *shape)


class Augmentation:
    """Base class: ``augmentation(x, uniform)`` returns augmented images x (B, C, H, W).

    ``uniform(*shape)`` draws numbers in [0, 1) of shape (B, *shape).

    Attributes:
        part: the condition part to augment in place of the item; None: augment the item.
        told: whether the network's condition describes the augmentation of each item.
        numbers: how many numbers describe it, each in [-1, 1]; all are 0 for an original item.
    """

    part: str | None = None
    told, numbers = False, 0

    def __call__(self, x: Tensor, uniform: Uniform) -> Tensor:
        return self.apply(x, uniform)[0]

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        """Return augmented x, and the numbers (B, numbers) that describe its augmentation.

        A class without the option ``told`` may define ``__call__`` instead.
        """
        raise NotImplementedError("apply() is not defined")


@declared("augmentation.flip")
class Flip(Augmentation):
    """Exchange left and right with probability ``p``.

    If ``told``, the condition is 1 for a flipped item.
    """

    numbers = 1

    def __init__(self, p: Share = 0.5, told: bool = False) -> None:
        self.p, self.told = p, told

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        flipped = uniform() < self.p
        return torch.where(flipped.view(-1, 1, 1, 1), x.flip(-1), x), flipped.to(x).unsqueeze(1)


@declared("augmentation.crop")
class Crop(Augmentation):
    """Shift an image by up to ``padding`` pixels in each direction, with probability ``p``.

    The border is filled by reflection. If ``told``, the condition is the shift down and to the
    right, as fractions of ``padding``.
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
    r"""Add noise to an image of the condition, and describe the noise level in the condition.

    At the level s, z = cos(pi s / 2) low + sin(pi s / 2) eps. A stage that was trained on noisy
    images tolerates the errors of the stage before it (Ho et al. 2022, cascades, sec. 4,
    "conditioning augmentation"; Saharia et al. 2022, Imagen, sec. 2.4). The bound is at s = 0.

    Args:
        part: name of the condition part, an image.
        p: probability that an item's image gets noise, with s uniform in (0, most].
        most: the largest s; at 1 nothing but noise is left.
    """

    told, numbers = True, 1

    def __init__(
        self, part: str = "low", p: Share = 0.5, most: Annotated[float, Gt(0), Le(1)] = 0.5
    ) -> None:
        self.part, self.p, self.most = part, p, most

    def apply(self, x: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
        level = torch.where(uniform() < self.p, self.most * (1 - uniform()), 0.0)
        u = uniform(*x.shape[1:]).clamp(2**-25, 1 - 2**-24)  # the quantiles at 0 and 1 are infinite
        return self.add_noise(x, level, math.sqrt(2) * torch.erfinv(2 * u - 1)), level.unsqueeze(1)

    @staticmethod
    def add_noise(x: Tensor, level: Tensor, eps: Tensor) -> Tensor:
        """Return x (B, C, H, W) at noise levels s (B,): z = cos(pi s / 2) x + sin(pi s / 2) eps."""
        angle = (math.pi / 2 * level).view(-1, 1, 1, 1)
        return angle.cos() * x + angle.sin() * eps


def augment_batch(
    batch: Batch,
    steps: Sequence[Augmentation],
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    random: BatchDraws = BATCH_DRAWS,
) -> Batch:
    """Apply the augmentations ``steps`` in turn to a training batch and its condition.

    Augmentations with ``told`` add their description of each item to the condition.
    """
    part_seed = hash_seed(seed, Stream.PART_AUGMENTATION)
    draw_arguments = step, rank, world, random
    all_numbers = []
    for name, changes in group_by_part(steps).items():
        if name is None:
            x, numbers = augment(batch.x, changes, seed, *draw_arguments)
            batch = batch._replace(x=x)
        else:
            part = find_part(batch.condition, name)
            if batch.condition is None or part is None:
                raise UserError(
                    f"augmentation: the condition has no part {name!r}; set augmentation=none"
                )
            value, numbers = augment(part.value, changes, part_seed, *draw_arguments)
            changed = Condition(**{name: Part(value, part.present, part.mask)})
            batch = batch._replace(condition=batch.condition.merge(changed))
        all_numbers.append(numbers)
    numbers = torch.cat(all_numbers, 1)
    if not numbers.shape[1]:
        return batch
    description = Condition(**{AUGMENTATION: Part(numbers, numbers.any(1))})
    return batch._replace(condition=description.merge(batch.condition))


def group_by_part(steps: Sequence[Augmentation]) -> dict[str | None, list[Augmentation]]:
    """Group augmentations by the condition part that they change; None stands for the item."""
    groups: dict[str | None, list[Augmentation]] = {}
    for change in steps:
        groups.setdefault(change.part, []).append(change)
    return groups


def augment(
    x: Tensor,
    steps: Sequence[Augmentation],
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    random: BatchDraws = BATCH_DRAWS,
) -> tuple[Tensor, Tensor]:
    """Apply the augmentations ``steps`` in turn; return images and their descriptions.

    ``x`` (B, C, H, W) is this process's share of the global batch of ``step``. The description (B,
    numbers) joins the numbers of the augmentations with ``told``. Raises UserError if ``x`` is no
    batch of images.
    """
    if x.ndim != 4:
        raise UserError(
            f"augmentation: needs images (C, H, W), but items are {tuple(x.shape[1:])}; set "
            "augmentation=none"
        )
    share = StepShare(len(x) * world, seed, step, rank, world, CPU)
    uniform = random.augmentation_uniforms(share)
    descriptions = [x.new_zeros(len(x), 0)]
    for change in steps:
        if change.told:
            x, numbers = change.apply(x, uniform)
            descriptions.append(numbers)
        else:
            x = change(x, uniform)
    return x, torch.cat(descriptions, 1)


def noise_only_description(steps: Sequence[Augmentation], part: str, level: float) -> Tensor:
    """Return the condition part "augmentation", (numbers,), of an item changed by noise alone.

    The noise is in ``part``, of the noise level ``level``; numbers of other changes are 0.
    """
    numbers = [torch.zeros(0)]
    for changes in group_by_part(steps).values():
        for change in changes:
            if not change.told:
                continue
            description = torch.zeros(change.numbers)
            if isinstance(change, ConditioningNoise) and change.part == part:
                description += level
            numbers.append(description)
    return torch.cat(numbers)


def count_condition_numbers(steps: Sequence[Augmentation]) -> int:
    """Return the size of the condition part "augmentation", which describes an item's changes."""
    return sum(change.numbers for change in steps if change.told)
