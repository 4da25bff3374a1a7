"""JiT, "just image transformer" (Li & He 2025): a DiT with more recent layers.

RMSNorm replaces LayerNorm and also normalises queries and keys. SwiGLU, w_3 (silu(w_1 h) * w_2 h),
replaces the two-layer perceptron. Rotary positions are used beside the added sines. From some block
on, tokens of the class precede those of the patches.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from triptych.declare import Whole
from triptych.diffusion.condition import Condition, find_part
from triptych.networks.dit import (
    DiT,
    DiTBlock,
    Rotations,
    TokenAttention,
    join_rows_and_columns,
    position_frequencies,
    sine_positions,
    xavier_linear,
)

EPS = 1e-6  # added to the mean square in each norm


def rotary_angles(rows: int, columns: int, width: int) -> Rotations:
    r"""Return cosines and sines of the rotary angles at each token, (rows * columns, width).

    The first half of a head is rotated by the row p, the second by the column; pair i of a half's d
    numbers is rotated by p 10000^(-2 i / d) (Su et al. 2021). Products of queries and keys thus
    depend only on differences of positions.
    """
    angles = [torch.arange(n).unsqueeze(1) * position_frequencies(width) for n in (rows, columns)]
    angle = join_rows_and_columns(*(angle.repeat_interleave(2, 1) for angle in angles))
    return angle.cos(), angle.sin()


def rotate_pairs(h: Tensor, angles: Rotations) -> Tensor:
    """Rotate each pair of numbers of h (..., N, width) by its token's angle, (N, width) each."""
    first, second = h.unflatten(-1, (-1, 2)).unbind(-1)
    return h * angles[0] + torch.stack([-second, first], -1).flatten(-2) * angles[1]


class RotaryAttention(TokenAttention):
    """Self-attention over tokens (B, N, width) with normalised and rotated queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=EPS) for _ in range(2))

    def encode_positions(self, q: Tensor, k: Tensor, positions: Rotations) -> tuple[Tensor, Tensor]:
        return rotate_pairs(self.q_norm(q), positions), rotate_pairs(self.k_norm(k), positions)


class SwiGLU(nn.Module):
    """A gated perceptron, w_3 (silu(w_1 h) * w_2 h) (Shazeer 2020).

    It has as many parameters as a perceptron with 4 width hidden units.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        inside = 4 * width * 2 // 3
        self.both, self.last = xavier_linear(width, 2 * inside), xavier_linear(inside, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        gate, value = self.both(h).chunk(2, -1)
        return self.last(self.dropout(silu(gate) * value))


class JiTBlock(DiTBlock):
    """A transformer block: attention and SwiGLU, each modulated, gated and added as in DiT."""

    @staticmethod
    def norm(width: int) -> nn.Module:
        return nn.RMSNorm(width, eps=EPS)

    @staticmethod
    def layers(width: int, heads: int, dropout: float) -> tuple[nn.Module, nn.Module]:
        return RotaryAttention(width, heads), SwiGLU(width, dropout)


class JiT(DiT):
    """JiT's transformer for images.

    Arguments that all networks share are described in ``triptych.networks``, the other sizes in
    ``DiT``.

    Args:
        context: number of class tokens before the patches, each the class embedding plus a learned
            vector. Without labels in the condition they are the learned vectors alone; 0: no such
            tokens.
        context_from: number of the block before which these tokens are inserted, from 0.
    """

    block = JiTBlock
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
            depth = len(self.blocks)
            raise ValueError(
                f"denoiser.network.context_from={context_from}: must be from 0 to {depth - 1}, as "
                f"denoiser.network.depth={depth}"
            )
        self.context_from = context_from
        # The paper draws these at random. Ours have the same magnitude but are fixed, so that the
        # other weights start the same with and without them.
        self.context = (
            nn.Parameter(0.02 * 2**0.5 * sine_positions(1, context, width)) if context else None
        )
        _, high, wide = self.shape
        patch = self.cut.downscale_factor
        cos, sin = rotary_angles(high // patch, wide // patch, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def run_blocks(self, h: Tensor, c: Tensor, condition: Condition | None) -> Tensor:
        rotations = self.cos, self.sin
        for i, block in enumerate(self.blocks):
            if self.context is not None and i == self.context_from:
                h = torch.cat([self._tokens(h, condition), h], 1)
                # The class tokens have no position.
                ones = self.cos.new_ones(len(self.context), self.cos.shape[1])
                rotations = (
                    torch.cat([ones, self.cos]),
                    torch.cat([torch.zeros_like(ones), self.sin]),
                )
            h = self.run_block(block, h, c, rotations)
        if self.context is None:
            return h
        return h[:, len(self.context) :]

    def _tokens(self, h: Tensor, condition: Condition | None) -> Tensor:
        assert self.context is not None
        tokens = self.context.expand(len(h), -1, -1)
        if "label" not in self.conditions:
            return tokens
        embed = self.conditioning.get_submodule("label")
        label: Tensor = embed(find_part(condition, "label"), len(h))
        return tokens + label.unsqueeze(1)
