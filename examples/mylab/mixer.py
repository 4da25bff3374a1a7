"""A network: rows and columns mixed in turn."""

from typing import Any

from torch import Tensor, nn

from triptych.declare import Count
from triptych.diffusion.condition import Condition
from triptych.networks.base import Network, image_shape, zeros
from triptych.networks.conditioning import Conditioning


class Block(nn.Module):
    """Mix rows, columns and channels of h in turn, each with a residual connection."""

    def __init__(self, width: int, height: int, breadth: int):
        super().__init__()
        self.down, self.across = nn.Linear(height, height), nn.Linear(breadth, breadth)
        self.channels, self.modulation = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, H, W, width), c (B, width)."""
        h = h + self.down(h.transpose(1, 3)).transpose(1, 3)
        h = h + self.across(h.transpose(2, 3)).transpose(2, 3)
        return h + self.channels(nn.functional.silu(h + self.modulation(c)[:, None, None]))


class Mixer(Network):
    """A network for images; ``triptych.networks`` describes the contract.

    Args:
        width, blocks: sizes.
        contract: from the data and the objective, see ``Network``.
    """

    def __init__(
        self, shape: tuple[int, ...], width: Count = 32, blocks: Count = 2, **contract: Any
    ):
        super().__init__(shape, **contract)
        channels, height, breadth = image_shape(shape, "mixer")
        self.conditioning = Conditioning(width, self.conditions)
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, height, breadth) for _ in range(blocks))
        self.last = zeros(nn.Linear(width, self.outputs * channels))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c, h = self.conditioning(gamma, condition), self.first(z.movedim(1, 3))
        for block in self.blocks:
            h = block(h, c)
        return self.per_dim(self.last(h).movedim(3, 1))
