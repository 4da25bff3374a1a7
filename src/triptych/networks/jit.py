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
from triptych.diffusion.condition import Condition, part_of
from triptych.networks.dit import DiT, DiTBlock, Places, TokenAttention, frequencies, linear, over_grid, sines

EPS = 1e-6  # added to the mean square in each norm


def rotary(high: int, wide: int, width: int) -> Places:
    r"""Return cosines and sines (high wide, width) of the angles that rotate a head's numbers at each token.

    The first half of a head turns with the row p, the second with the column, pair i of a half's d numbers by
    p 10000^(-2 i / d) (Su et al. 2021): products of queries and keys depend on differences of places alone.
    """
    angles = [torch.arange(n).unsqueeze(1) * frequencies(width) for n in (high, wide)]
    angle = over_grid(*(angle.repeat_interleave(2, 1) for angle in angles))
    return angle.cos(), angle.sin()


def turned(h: Tensor, places: Places) -> Tensor:
    """Rotate each pair of numbers of h (..., N, width) by the angle of its token, (N, width) each."""
    first, second = h.unflatten(-1, (-1, 2)).unbind(-1)
    return h * places[0] + torch.stack([-second, first], -1).flatten(-2) * places[1]


class RotaryAttention(TokenAttention):
    """Self-attention over tokens (B, N, width), queries and keys normalised and turned by their places."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=EPS) for _ in range(2))

    def place(self, q: Tensor, k: Tensor, places: Places) -> tuple[Tensor, Tensor]:
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


class JiTBlock(DiTBlock):
    """Attention and SwiGLU, each modulated, gated and added, as DiT's block is."""

    @staticmethod
    def norm(width: int) -> nn.Module:
        return nn.RMSNorm(width, eps=EPS)

    @staticmethod
    def layers(width: int, heads: int, dropout: float) -> tuple[nn.Module, nn.Module]:
        return RotaryAttention(width, heads), SwiGLU(width, dropout)


class JiT(DiT):
    """See ``triptych.networks`` for the contract, and ``DiT`` for the other sizes.

    Args:
        context: tokens of the class, each its embedding and a learned vector, that are put before the
            patches; without labels in the condition the vectors alone; 0: none.
        context_from: block before which they are put there.
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
            fix = f"must be a multiple of 4 times denoiser.network.heads={heads}"
            raise ValueError(f"denoiser.network.width={width}: {fix}")
        if context and context_from >= len(self.blocks):
            last = f"the last of denoiser.network.depth={len(self.blocks)}, counted from 0"
            raise ValueError(f"denoiser.network.context_from={context_from}: must be a block before {last}")
        self.context_from = context_from
        # As large as the paper's, which are drawn. Ours are not, so that the other weights are the
        # same with and without them.
        self.context = nn.Parameter(0.02 * 2**0.5 * sines(1, context, width)) if context else None
        _, high, wide = self.shape
        patch = self.cut.downscale_factor
        cos, sin = rotary(high // patch, wide // patch, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def through(self, h: Tensor, c: Tensor, condition: Condition | None) -> Tensor:
        places = self.cos, self.sin
        for i, block in enumerate(self.blocks):
            if self.context is not None and i == self.context_from:
                h = torch.cat([self._tokens(h, condition), h], 1)
                still = self.cos.new_ones(len(self.context), self.cos.shape[1])  # they have no place
                places = torch.cat([still, self.cos]), torch.cat([torch.zeros_like(still), self.sin])
            h = block(h, c, places)
        if self.context is None:
            return h
        return h[:, len(self.context) :]

    def _tokens(self, h: Tensor, condition: Condition | None) -> Tensor:
        assert self.context is not None
        tokens = self.context.expand(len(h), -1, -1)
        if "label" not in self.conditions:
            return tokens
        embed = self.conditioning.get_submodule("label")
        label: Tensor = embed(part_of(condition, "label"), len(h))
        return tokens + label.unsqueeze(1)
