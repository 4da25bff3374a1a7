"""A network that does not depend on this project: it is called like ``diffusers.UNet2DModel``."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Answer:
    sample: Tensor


class Bare(nn.Module):
    """Three convolutions, conditioned on the step and the class."""

    def __init__(self, in_channels=1, out_channels=1, width=16, num_class_embeds=None):
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((in_channels, width), (width, out_channels))
        )
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.step = nn.Linear(2, width)
        self.classes = nn.Embedding(num_class_embeds, width) if num_class_embeds else None

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Answer:
        angle = timestep / 1000 * torch.pi
        condition = self.step(torch.stack([angle.sin(), angle.cos()], 1))
        if self.classes is not None:
            condition = condition + self.classes(class_labels)
        h = nn.functional.silu(self.first(sample) + condition[:, :, None, None])
        return Answer(self.last(nn.functional.silu(self.middle(h))))
