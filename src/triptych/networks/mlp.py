"""A residual multi-layer perceptron, for points and other small events."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from triptych.declare import Count, Share
from triptych.diffusion.condition import Condition
from triptych.networks.base import Network, zeros
from triptych.networks.conditioning import Conditioning


class PointBlock(nn.Module):
    """A residual block: h + W2 silu(scale(c) * norm(W1 h) + shift(c))."""

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


class MLP(Network):
    """A residual multi-layer perceptron; events of any shape are flattened.

    Arguments that all networks share are described in ``triptych.networks``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: Count = 128,
        blocks: Count = 3,
        dropout: Share = 0.0,
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        dims = math.prod(self.shape)
        self.conditioning = Conditioning(width, self.conditions)
        self.first = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(PointBlock(width, dropout) for _ in range(blocks))
        self.last = zeros(nn.Linear(width, dims * self.outputs))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        h = self.first(z.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.per_dim(self.last(nn.functional.silu(h)))
