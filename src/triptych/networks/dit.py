"""Diffusion transformer (Peebles & Xie 2023): patches as tokens, blocks modulated by conditioning.

A block is h + g_1 attention(norm(h) (1 + s_1) + b_1), then h + g_2 mlp(norm(h) (1 + s_2) + b_2).
Its six vectors are a linear map of the conditioning that starts at zero (adaLN-Zero), so every
block starts as the identity.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from triptych.declare import Count, Ge, Positive, Share
from triptych.diffusion.condition import Condition
from triptych.networks.base import ImageNetwork, check_heads, zeros
from triptych.networks.conditioning import LabelEmbedding

# Cosines and sines (N, d) of the rotation angles of the tokens' positions.
Rotations = tuple[Tensor, Tensor]


class TokenAttention(nn.Module):
    """Self-attention over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = xavier_linear(width, 3 * width), xavier_linear(width, width)

    def forward(self, h: Tensor, positions: Rotations | None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.encode_positions(q, k, positions)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def encode_positions(self, q: Tensor, k: Tensor, positions: Any) -> tuple[Tensor, Tensor]:
        """Return queries and keys (B, heads, N, d); a subclass uses the tokens' ``positions``."""
        return q, k


class DiTBlock(nn.Module):
    """A transformer block: attention and a perceptron, each modulated, gated and added."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.modulation = zeros(nn.Linear(width, 6 * width))
        self.norms = nn.ModuleList(self.norm(width) for _ in range(2))
        self.attention, self.mlp = self.layers(width, heads, dropout)

    # A subclass with other layers replaces these two methods.

    @staticmethod
    def norm(width: int) -> nn.Module:
        return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    @staticmethod
    def layers(width: int, heads: int, dropout: float) -> tuple[nn.Module, nn.Module]:
        attention, gelu = TokenAttention(width, heads), nn.GELU(approximate="tanh")
        layers = (
            xavier_linear(width, 4 * width),
            gelu,
            nn.Dropout(dropout),
            xavier_linear(4 * width, width),
        )
        return attention, nn.Sequential(*layers)

    def forward(self, h: Tensor, c: Tensor, positions: Rotations | None = None) -> Tensor:
        b_1, s_1, g_1, b_2, s_2, g_2 = self.modulation(c).unsqueeze(1).chunk(6, 2)
        h = h + g_1 * self.attention(torch.addcmul(b_1, self.norms[0](h), 1 + s_1), positions)
        return h + g_2 * self.mlp(torch.addcmul(b_2, self.norms[1](h), 1 + s_2))


class DiT(ImageNetwork):
    """Diffusion transformer for images; height and width are multiples of ``patch``.

    Arguments that all networks share are described in ``triptych.networks``.

    Args:
        patch: side of the squares that are one token each.
        width, depth, heads: sizes of the transformer; width is a multiple of 4 and of the heads.
        bottleneck: size that a patch is first reduced to (Li & He 2025, JiT); None: no reduction.
        dropout: dropout of the perceptrons.
        fourier: see ``ImageNetwork.read``.
    """

    position: Tensor
    block = DiTBlock  # a subclass may set another class of blocks

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: Count = 2,
        width: Annotated[int, Ge(4)] = 128,
        depth: Count = 4,
        heads: Count = 4,
        bottleneck: Count | None = None,
        dropout: Share = 0.0,
        fourier: Sequence[Positive] = (),
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        self.read(width, fourier, waves=128)
        channels, high, wide = self.shape
        check_heads(width, heads)
        if width % 4:
            raise ValueError(f"denoiser.network.width={width}: must be a multiple of 4")
        self.width, self.heads = width, heads
        for part in self.conditioning.modules():
            # Start small compared to the embedding of gamma, as in the code of Peebles & Xie.
            if isinstance(part, LabelEmbedding):
                nn.init.normal_(part.weight, std=0.02)
        numbers = self.channels * patch**2
        self.cut = nn.PixelUnshuffle(patch)
        sizes = (numbers, width) if bottleneck is None else (numbers, bottleneck, width)
        self.embed = nn.Sequential(*(xavier_linear(a, b) for a, b in itertools.pairwise(sizes)))
        position = sine_positions(high // patch, wide // patch, width)
        self.register_buffer("position", position, persistent=False)
        self.blocks = nn.ModuleList(self.block(width, heads, dropout) for _ in range(depth))
        self.norm = self.block.norm(width)
        self.modulation = zeros(nn.Linear(width, 2 * width))
        self.last = zeros(nn.Linear(width, channels * self.outputs * patch**2))
        self.join = nn.PixelShuffle(patch)

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        patches = self.cut(self.features(z, condition))
        h = self.embed(patches.flatten(2).transpose(1, 2)) + self.position
        h = self.run_blocks(h, c, condition)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, 2)
        h = self.last(torch.addcmul(shift, self.norm(h), 1 + scale))
        h = h.transpose(1, 2).unflatten(2, tuple(patches.shape[2:]))
        return self.per_dim(self.join(h))

    def run_blocks(self, h: Tensor, c: Tensor, condition: Condition | None) -> Tensor:
        """Return the tokens h (B, N, width) after all blocks; a subclass may insert tokens."""
        for block in self.blocks:
            h = self.run_block(block, h, c)
        return h


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Encode the positions of tokens by sines and cosines of row and column, (N, width).

    Periods run from 2 pi to 2 pi 10^4.
    """
    angles = [torch.arange(n).unsqueeze(1) * position_frequencies(width) for n in (rows, columns)]
    return join_rows_and_columns(*(torch.cat([angle.sin(), angle.cos()], 1) for angle in angles))


def position_frequencies(width: int) -> Tensor:
    """Return 10^-4 to the powers 0, 4 / width, 8 / width, ... below 1: (width / 4,)."""
    return 10_000 ** -(torch.arange(width // 4) / (width / 4))


def join_rows_and_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """Join encodings of rows (R, d) and columns (C, d) for all tokens: (R C, 2 d)."""
    grid = (
        rows.unsqueeze(1).expand(-1, len(columns), -1),
        columns.unsqueeze(0).expand(len(rows), -1, -1),
    )
    return torch.cat(grid, 2).flatten(0, 1)


def xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with Xavier's uniform weights and a bias of zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
