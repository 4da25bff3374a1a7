r"""Several denoisers in a row as one model: p(y) = p(y_1) p(y_2 | y_1) ... p(y_n | y_1 ... y_{n-1}).

A cascade draws a low image and then a higher one given it (Ho et al. 2022; Imagen, Saharia et al. 2022); a
prior and a decoder draw an embedding and then the image it belongs to (DALL-E 2, Ramesh et al. 2022, sec. 2).
The condition of each stage has the parts of the whole, and what the stages before it have drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .condition import Condition
from .protocol import AnyDenoiser
from .sampler import Progress, Sampler
from .schedule import Schedule


@dataclass
class Stage:
    """A denoiser, guided or not, its ``schedule`` and ``sampler``, and the event ``shape`` of a sample.

    Args:
        name: of what it draws: the part of the later stages' conditions that holds it.
        change: of its samples before later stages see them, as a rounding to the data's levels.
        prepare: of its condition before it draws, as noise on an image; (condition, generator) -> condition.
    """

    name: str
    denoiser: AnyDenoiser
    schedule: Schedule
    sampler: Sampler
    shape: tuple[int, ...]
    change: Callable[[Tensor], Tensor] | None = None
    prepare: Callable[[Condition, torch.Generator | None], Condition] | None = None


class CascadeSampler:
    """Samples of the last of several stages, each on condition of those before it."""

    def __init__(self, stages: Sequence[Stage]):
        names = [stage.name for stage in stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"stages {names}: needs one stage or more, of different names")
        self.stages = list(stages)

    @torch.no_grad()
    def __call__(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        progress: Progress = iter,
    ) -> dict[str, Tensor]:
        """Sample each stage: {name: (n, *shape)}, the last one's last; condition of n items or None."""
        drawn: dict[str, Tensor] = {}
        for stage in self.stages:
            parts: dict[str, Any] = {} if condition is None else condition.parts
            whole = Condition.of(**{**parts, **drawn})
            if stage.prepare is not None and whole is not None:
                whole = stage.prepare(whole, generator)
            x = stage.sampler(
                stage.denoiser,
                stage.schedule,
                (n, *stage.shape),
                generator=generator,
                condition=whole,
                device=device,
                dtype=dtype,
                progress=progress,
            )
            drawn[stage.name] = x if stage.change is None else stage.change(x)
        return drawn
