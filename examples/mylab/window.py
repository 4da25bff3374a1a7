"""A loss: a window of noise levels."""

import torch
from torch import Tensor

from triptych.declare import Positive
from triptych.diffusion.loss import Level, Loss


class Window(Loss):
    """w = exp(-(gamma - centre)^2 / 2 width^2), on the bound's own scale."""

    def __init__(self, centre: float = 0.0, width: Positive = 4.0):
        self.centre, self.width = centre, width

    def weight(self, at: Level) -> Tensor:
        return torch.exp(-0.5 * ((at.gamma - self.centre) / self.width).square())
