"""A network: rows and columns mixed in turn."""

from collections.abc import Mapping

from torch import Tensor, nn

from triptych.declare import Count, declared
from triptych.diffusion.condition import Condition, Kind
from triptych.networks.conditioning import Conditioning
from triptych.networks.embedding import image_shape, per_dim, zeros


class Block(nn.Module):
    """h plus what its rows, its columns and its channels say of it, in turn."""

    def __init__(self, width: int, height: int, breadth: int):
        super().__init__()
        self.down, self.across = nn.Linear(height, height), nn.Linear(breadth, breadth)
        self.channels, self.told = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, H, W, width), c (B, width)."""
        h = h + self.down(h.transpose(1, 3)).transpose(1, 3)
        h = h + self.across(h.transpose(2, 3)).transpose(2, 3)
        return h + self.channels(nn.functional.silu(h + self.told(c)[:, None, None]))


@declared("denoiser.network")
class Mixer(nn.Module):
    """See ``triptych.networks`` for the contract; for images.

    Args:
        width, blocks: sizes.
        shape, outputs, conditions: handed by the names of these arguments, from the data and the objective.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        conditions: Mapping[str, Kind] | None = None,
        width: Count = 32,
        blocks: Count = 2,
    ):
        super().__init__()
        channels, height, breadth = self.shape = image_shape(shape, "mixer")
        self.outputs, self.conditions = outputs, dict(conditions or {})
        self.conditioning = Conditioning(width, self.conditions)
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(Block(width, height, breadth) for _ in range(blocks))
        self.last = zeros(nn.Linear(width, outputs * channels))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c, h = self.conditioning(gamma, condition), self.first(z.movedim(1, 3))
        for block in self.blocks:
            h = block(h, c)
        return per_dim(self.last(h).movedim(3, 1), self.outputs, self.shape)
