"""Learning-rate schedules: linear warm-up, then constant, a cosine or an inverse square root."""

import math
from typing import Annotated

from triptych.declare import Count, Share, Unit, Whole, declared


@declared("lr_schedule")
class Constant:
    """Linear warm-up over ``warmup_steps``, then the constant factor 1."""

    def __init__(self, warmup_steps: Annotated[Whole, Unit("steps")] = 0):
        self.warmup_steps = warmup_steps

    def factor(self, step: int, max_steps: int) -> float:
        """Return the factor of the base learning rate at ``step``."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class Cosine(Constant):
    """Linear warm-up, then half a cosine from 1 to ``floor`` at ``max_steps``."""

    def __init__(self, warmup_steps: int = 0, floor: Share = 0.0):
        super().__init__(warmup_steps)
        self.floor = floor

    def factor(self, step: int, max_steps: int) -> float:
        done = min(1.0, max(0, step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        decay = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        return super().factor(step, max_steps) * decay


class InverseSqrt(Constant):
    """Linear warm-up, then 1, and sqrt(reference_steps / step) after step ``reference_steps``.

    See Karras et al. 2024.
    """

    def __init__(
        self, warmup_steps: int = 0, reference_steps: Annotated[Count, Unit("steps")] = 70_000
    ):
        super().__init__(warmup_steps)
        self.reference_steps = reference_steps

    def factor(self, step: int, max_steps: int) -> float:
        return super().factor(step, max_steps) / math.sqrt(max(step / self.reference_steps, 1))
