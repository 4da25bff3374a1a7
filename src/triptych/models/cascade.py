"""A cascade of diffusion models as one model: its bound is the sum of its stages' bounds.

The low-resolution image y = q(x) is a function of x, so p(x) = p(y, x) = p(y) p(x | y), and

    -log p(x) = -log p(y) - log p(x | y) <= bound(y) + bound(x | y),

in nats per item. Each term of the bound is the sum over stages; "per dimension" divides by the
dimensions of x. Published cascades report only samples (Ho et al. 2022; Imagen, Saharia et al.
2022).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.batch import Batch, to_level, to_unit
from triptych.declare import Opened
from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.condition import Condition
from triptych.diffusion.control import DrawError, controlled_error
from triptych.diffusion.sampler import Sampler
from triptych.models.base import BoundModel


class Cascade(BoundModel):
    """A cascade of diffusion models, each trained in its own run; the cascade is not trained.

    Args:
        stages: diffusion models in order; the last one models the data's own items.
        known_as: for each stage but the last, the name of the condition part in which later stages
            receive the items of this stage.
        levels: number of the data's levels; None for a density.
    """

    ignores = ("schedule", "process", "denoiser", "objective", "likelihood")

    def __init__(
        self,
        stages: Sequence[Opened],
        *,
        known_as: Sequence[str],
        levels: int | None = None,
        **more: Any,
    ):
        super().__init__(**(more | {"conditional": True}))
        self.stages: Any = nn.ModuleList(stages)
        self.known_as, self.levels = list(known_as), levels

    def stage_batch(self, batch: Batch, i: int) -> Batch:
        """Return the batch of stage ``i``: its items, conditioned on those of earlier stages."""
        if i == len(self.known_as):
            return batch
        assert batch.condition is not None
        part = batch.condition.parts[self.known_as[i]]
        return Batch(part.value, batch.condition.without(*self.known_as[i:]), batch.index)

    def elbo(self, batch: Batch, repeat: int, repeats: int) -> BoundTerms:
        stages = enumerate(self.stages)
        bounds = [stage.elbo(self.stage_batch(batch, i), repeat, repeats) for i, stage in stages]
        return BoundTerms(*(torch.stack(term).sum(0) for term in zip(*bounds, strict=True)))

    def before_accounting(self) -> None:
        for stage in self.stages:
            stage.before_accounting()

    def before_report(self) -> None:
        for stage in self.stages:
            stage.before_report()

    def draw_error(self, batch: Batch, totals: Tensor) -> DrawError:
        # Control variates need one set of diffusion times. Stages share their times only if their
        # seeds are equal; otherwise no error is estimated.
        seeds = {stage.seed for stage in self.stages}
        controls = [stage.control if len(seeds) == 1 else None for stage in self.stages]
        return controlled_error(totals, controls, batch.index, self.stages[0].seed)

    def check_sampler(self, sampler: Sampler) -> None:
        for stage in self.stages:
            stage.check_sampler(sampler)

    def sample(
        self,
        n: int,
        sampler: Any,
        generator: torch.Generator,
        condition: Condition | None = None,
        progress: Any = iter,
    ) -> Tensor:
        # Each stage is conditioned on samples of earlier stages, rounded to the data's levels.
        if condition is not None:
            condition = condition.without(*self.known_as)
        x = torch.empty(0)
        for name, stage in zip([*self.known_as, "x"], self.stages, strict=True):
            x = stage.sample(n, sampler, generator, condition, progress)
            if self.levels is not None:
                x = to_unit(to_level(x, self.levels), self.levels)
            drawn = Condition(**{name: x})
            condition = drawn if condition is None else condition.merge(drawn)
        return x
