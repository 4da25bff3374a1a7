"""Several draws a sample, of which a score chooses one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.declare import Count

from ..condition import Condition
from ..protocol import AnyDenoiser
from ..schedule import Schedule
from .ddim import DDIM


class Chosen(DDIM):
    """Of ``draws`` samples by DDIM the one with the highest dot product with a vector of the condition.

    So DALL-E 2's prior draws (Ramesh et al. 2022, sec. 2.2): two image embeddings, of which the one nearer to
    the embedding of the text is kept.

    Args:
        draws: samples to choose from; 1, or a condition without the part: DDIM's own sample, bit for bit.
        by: name of the part of the condition, a vector of the samples' size.
        steps, more: see ``DDIM``.
    """

    def __init__(self, steps: int, draws: Count = 2, by: str = "text_embedding", **more: Any):
        super().__init__(steps, **more)
        self.draws, self.by, self.calls = draws, by, draws

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        condition: Condition | None = None,
        **more: Any,
    ) -> Tensor:
        """As in the base. Raises ValueError for a part of another size than the samples."""
        part = None if condition is None else condition.part(self.by)
        draw = super().__call__
        if part is None or self.draws == 1:
            return draw(denoiser, schedule, shape, condition=condition, **more)
        draws = [draw(denoiser, schedule, shape, condition=condition, **more) for _ in range(self.draws)]
        samples, near = torch.stack(draws), part.value.flatten(1)
        if near[0].numel() != samples[0, 0].numel():
            raise ValueError(
                f"sampler.by={self.by}: has {near[0].numel()} numbers; must have the "
                f"{samples[0, 0].numel()} of a sample"
            )
        best = (samples.flatten(2) * near).sum(2).argmax(0)
        return samples[best, torch.arange(len(best), device=best.device)]
