"""A residual multi-layer perceptron, for points and other small events."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from triptych.declare import Count, Share, declared
from triptych.diffusion.condition import Condition, Kind
from triptych.networks.conditioning import Conditioning
from triptych.networks.embedding import per_dim, zeros


class Block(nn.Module):
    """h + W2 silu(scale(c) * norm(W1 h) + shift(c))."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeros(nn.Linear(width, 2 * width))
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).chunk(2, 1)
        inner = torch.addcmul(shift, self.norm(self.first(h)), 1 + scale)
        return h + self.second(self.dropout(nn.functional.silu(inner)))


@declared("denoiser.network")
class MLP(nn.Module):
    """See ``triptych.networks`` for the contract; any event shape, flattened.

    Args:
        width, blocks, dropout: sizes.
        shape, outputs, conditions, spacing: from the data and the objective.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        conditions: Mapping[str, Kind] | None = None,
        spacing: float | None = None,
        width: Count = 128,
        blocks: Count = 3,
        dropout: Share = 0.0,
    ):
        super().__init__()
        self.shape, self.outputs, self.conditions = tuple(shape), outputs, dict(conditions or {})
        dims = math.prod(self.shape)
        self.conditioning = Conditioning(width, self.conditions)
        self.first = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.last = zeros(nn.Linear(width, dims * outputs))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        h = self.first(z.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        raw = self.last(nn.functional.silu(h)).view(len(z), self.outputs * self.shape[0], *self.shape[1:])
        return per_dim(raw, self.outputs, self.shape)
