"""Where parts of a condition come from that samples are asked for: another run draws them, or another part.

So a run is the last stage of a cascade: a prior draws the embedding that a decoder is told (DALL-E 2), a
model of low images the image that super-resolution is told (Imagen).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from triptych.diffusion.cascade import CascadeSampler, Stage
from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import Progress


class Source(Protocol):
    """Gives one part of the conditions of n samples, (n, ...)."""

    name: str

    def __call__(
        self, n: int, condition: Condition | None, generator: torch.Generator, progress: Progress = iter
    ) -> Tensor: ...


class OtherPart:
    """The part ``of`` in the place of ``name``, as the embedding of a text in that of an image's."""

    def __init__(self, name: str, of: str):
        self.name, self.of = name, of

    def __call__(
        self, n: int, condition: Condition | None, generator: torch.Generator, progress: Progress = iter
    ) -> Tensor:
        assert condition is not None
        return condition.parts[self.of].value


class OtherRun:
    """Samples of another run's model, asked the same."""

    def __init__(self, stage: Stage):
        self.name, self.stage = stage.name, stage

    def __call__(
        self, n: int, condition: Condition | None, generator: torch.Generator, progress: Progress = iter
    ) -> Tensor:
        device = generator.device
        self.stage.denoiser.to(device)  # type: ignore[attr-defined]
        self.stage.schedule.to(device)
        wanted = None if condition is None else condition.without(self.name)
        drawn = CascadeSampler([self.stage])(
            n, generator=generator, condition=wanted, device=device, progress=progress
        )
        return drawn[self.name]


def filled(
    condition: Condition | None,
    sources: Sequence[Source],
    n: int,
    generator: torch.Generator,
    progress: Progress = iter,
) -> Condition | None:
    """``condition`` of n samples with the parts that ``sources`` give, in turn, in place of its own."""
    for source in sources:
        part = Condition(**{source.name: source(n, condition, generator, progress)})
        condition = part if condition is None else condition.together(part)
    return condition
