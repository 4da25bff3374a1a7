"""A data set of bright bars on a dark ground, upright or lying, in four grey levels."""

import torch

from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.declare import Annotated, Count, Role, Share, Unit
from triptych.diffusion.condition import Condition
from triptych.diffusion.draws import Stream, seeded_generator

SIZES = {"train": 400, "val": 100, "test": 100}


class Bars(DataModule):
    """8 x 8 pictures of one bar each; the label says whether it lies (0) or stands (1).

    Args:
        thick: pixels across a bar. grain: share of the pixels whose level is drawn at random.
    """

    name, shape, levels, num_classes = "bars", (1, 8, 8), 4, 2

    def __init__(
        self, thick: Annotated[Count, Unit("pixels"), Role.DATA] = 2, grain: Share = 0.05, **loading
    ):
        super().__init__(**loading)
        self.thick, self.grain = thick, grain

    def load(self) -> dict[str, Split]:
        return {name: self._split(n, place) for place, (name, n) in enumerate(SIZES.items())}

    def _split(self, n: int, place: int) -> Split:
        draws = seeded_generator(Stream.POINTS, place)
        label = torch.randint(2, (n,), generator=draws)
        first = torch.randint(9 - self.thick, (n, 1, 1), generator=draws)
        row = torch.arange(8).view(1, 8, 1)
        lying = ((row >= first) & (row < first + self.thick)).expand(n, 8, 8)
        bar = torch.where(label.view(n, 1, 1) == 1, lying.transpose(1, 2), lying)
        noise = torch.randint(self.levels, (n, 8, 8), generator=draws)
        grain = torch.rand(n, 8, 8, generator=draws) < self.grain
        pixels = torch.where(grain, noise, 3 * bar)
        return Split(pixels.unsqueeze(1).to(torch.uint8), Condition(label=label), self.levels)
