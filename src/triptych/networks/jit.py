"""JiT's transformer (Li & He 2025, "just image transformer"): DiT's, with what has come since in its layers.

RMSNorm in the place of LayerNorm, and on queries and keys; SwiGLU, w_3 (silu(w_1 h) * w_2 h), in the place of
the two-layer perceptron; rotary positions beside the added sines; and, from some block on, tokens of the
class before those of the patches.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from triptych.declare import Whole
from triptych.diffusion.condition import Condition
from triptych.networks.base import zeros
from triptych.networks.dit import DiT, TokenAttention, linear, sines

EPS = 1e-6  # of the norms


def rotary(high: int, wide: int, width: int) -> tuple[Tensor, Tensor]:
    r"""Return cosines and sines (high wide, width) of the angles that rotate a head's numbers at each token.

    The first half of a head turns with the row p, the second with the column, pair i of a half's d numbers by
    p 10000^(-2 i / d) (Su et al. 2021): products of queries and keys depend on differences of places alone.
    """
    frequency = 10_000 ** -(torch.arange(width // 4) / (width / 4))
    row, column = ((torch.arange(n).unsqueeze(1) * frequency).repeat_interleave(2, 1) for n in (high, wide))
    grid = row.unsqueeze(1).expand(-1, wide, -1), column.unsqueeze(0).expand(high, -1, -1)
    angle = torch.cat(grid, 2).flatten(0, 1)
    return angle.cos(), angle.sin()


def turned(h: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of numbers of h (..., N, width) by the angle of its token, (N, width) each."""
    first, second = h.unflatten(-1, (-1, 2)).unbind(-1)
    return h * places[0] + torch.stack([-second, first], -1).flatten(-2) * places[1]


class RotaryAttention(TokenAttention):
    """Self-attention over tokens (B, N, width), queries and keys normalised and turned by their places."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=EPS) for _ in range(2))

    def place(self, q: Tensor, k: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return turned(self.q_norm(q), places), turned(self.k_norm(k), places)


class SwiGLU(nn.Module):
    """w_3 (silu(w_1 h) * w_2 h) (Shazeer 2020), of as many parameters as a perceptron of 4 width inside."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        inside = 4 * width * 2 // 3
        self.both, self.last = linear(width, 2 * inside), linear(inside, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        gate, value = self.both(h).chunk(2, -1)
        return self.last(self.dropout(silu(gate) * value))


class JiTBlock(nn.Module):
    """Attention and SwiGLU, each modulated, gated and added, as DiT's block is."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.modulation = zeros(nn.Linear(width, 6 * width))
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=EPS) for _ in range(2))
        self.attention, self.mlp = RotaryAttention(width, heads), SwiGLU(width, dropout)

    def forward(self, h: Tensor, c: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
        b_1, s_1, g_1, b_2, s_2, g_2 = self.modulation(c).unsqueeze(1).chunk(6, 2)
        h = h + g_1 * self.attention(torch.addcmul(b_1, self.norms[0](h), 1 + s_1), places)
        return h + g_2 * self.mlp(torch.addcmul(b_2, self.norms[1](h), 1 + s_2))


class JiT(DiT):
    """See ``triptych.networks`` for the contract, and ``DiT`` for the other sizes.

    Args:
        context: tokens of the class, each its embedding and a learned vector, that are put before the
            patches; without labels in the condition the vectors alone; 0: none.
        context_from: block before which they are put there.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, shape: tuple[int, ...], context: Whole = 32, context_from: Whole = 4, **sizes: Any
    ) -> None:
        super().__init__(shape, **sizes)
        width, heads = self.width, self.heads
        if width // heads % 4:
            raise ValueError(
                f"denoiser.network.width={width}: must be a multiple of 4 times "
                f"denoiser.network.heads={heads}"
            )
        if context and context_from >= len(self.blocks):
            raise ValueError(
                f"denoiser.network.context_from={context_from}: must be a block before the last of "
                f"denoiser.network.depth={len(self.blocks)}, counted from 0"
            )
        self.context_from = context_from
        # as large as the paper's, which are drawn; not drawn, so that the other weights are the same without
        self.context = nn.Parameter(0.02 * 2**0.5 * sines(1, context, width)) if context else None
        _, high, wide = self.shape
        patch = self.cut.downscale_factor
        cos, sin = rotary(high // patch, wide // patch, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def block(self, width: int, heads: int, dropout: float) -> nn.Module:
        return JiTBlock(width, heads, dropout)

    def final_norm(self, width: int) -> nn.Module:
        return nn.RMSNorm(width, eps=EPS)

    def through(self, h: Tensor, c: Tensor, condition: Condition | None) -> Tensor:
        places = self.cos, self.sin
        for i, block in enumerate(self.blocks):
            if self.context is not None and i == self.context_from:
                h = torch.cat([self._tokens(h, condition), h], 1)
                still = self.cos.new_ones(len(self.context), self.cos.shape[1])  # they have no place
                places = torch.cat([still, self.cos]), torch.cat([torch.zeros_like(still), self.sin])
            h = block(h, c, places)
        return h if self.context is None else h[:, len(self.context) :]

    def _tokens(self, h: Tensor, condition: Condition | None) -> Tensor:
        assert self.context is not None
        tokens = self.context.expand(len(h), -1, -1)
        if "label" not in self.conditions:
            return tokens
        part = None if condition is None else condition.part("label")
        label: Tensor = self.conditioning.get_submodule("label")(part, len(h))
        return tokens + label.unsqueeze(1)
