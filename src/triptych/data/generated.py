"""Data that a formula draws: sizes and seeds, shared by the mixtures and the toys."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.data.source import check_memory
from triptych.declare import Count, Role, Unit, Whole
from triptych.diffusion.condition import Condition
from triptych.diffusion.draws import Stream, seeded


class Generated(DataModule):
    """Continuous points (d,). Each split is drawn from its own seed, made of data_seed and its name.

    So the test set stays the same whatever the run's seed and the other sizes are.
    """

    levels = None

    def __init__(
        self,
        train_size: Annotated[Count, Role.SPLIT, Unit("items")] = 20000,
        val_size: Annotated[Whole, Role.SPLIT, Unit("items")] = 2000,
        test_size: Annotated[Count, Role.JUDGED, Unit("items")] = 5000,
        data_seed: Annotated[int, Role.JUDGED] = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.data_seed = data_seed

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(x (n, d), labels (n,) int64 or None); the subclass's work."""
        raise NotImplementedError

    def load(self) -> dict[str, Split]:
        for name, n in self.sizes.items():
            check_memory(f"data.{name}_size", n, math.prod(self.shape))
        splits = {}
        for stream, (name, n) in enumerate(self.sizes.items()):
            # One at least, as torch.multinomial refuses to draw none.
            x, labels = self.draw(max(n, 1), seeded(self.data_seed, Stream.POINTS, stream))
            splits[name] = Split(x[:n].float(), Condition.of(label=None if labels is None else labels[:n]))
        return splits
