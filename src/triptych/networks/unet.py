"""A small U-Net: residual blocks, attention at the lowest resolution (Ho et al. 2020, reduced)."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from triptych.declare import Count, MinLen, Positive, Share, declared
from triptych.diffusion.condition import Condition, Kind
from triptych.networks.conditioning import Beside, Conditioning, vectors_of
from triptych.networks.embedding import LevelWaves, image_shape, per_dim, zeros


class Block(nn.Module):
    """Residual block: norm, silu, conv, modulation by the conditioning, dropout, conv."""

    def __init__(self, before: int, after: int, conditioning: int, dropout: float):
        super().__init__()
        self.first_norm = nn.GroupNorm(_groups(before), before)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = zeros(nn.Linear(conditioning, 2 * after))
        self.second_norm = nn.GroupNorm(_groups(after), after)
        self.dropout = nn.Dropout(dropout)
        self.second = zeros(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, 1)
        inner = self.first(silu(self.first_norm(h)))
        inner = silu(torch.addcmul(shift, self.second_norm(inner), 1 + scale))
        return self.skip(h) + self.second(self.dropout(inner))


class Attention(nn.Module):
    """Self-attention over positions, residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_groups(width), width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeros(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        b, channels, height, width = h.shape
        qkv = self.qkv(self.norm(h)).view(b, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return h + self.out(mixed.reshape(b, channels, height, width))


@declared("denoiser.network")
class UNet(nn.Module):
    """See ``triptych.networks`` for the contract; height and width divisible by 2^(len(widths) - 1).

    Args:
        widths: channels at each resolution, from the image's own downwards.
        blocks: residual blocks at each resolution.
        attention: whether positions attend at the lowest resolution; ``heads`` of it.
        fourier: periods of ``LevelWaves``, in units of the level spacing.
        shape, outputs, conditions, spacing: from the data and the objective.

    Raises:
        ValueError: the data are no images, or their size does not divide.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        conditions: Mapping[str, Kind] | None = None,
        spacing: float | None = None,
        widths: Annotated[Sequence[Count], MinLen(1)] = (32, 48, 48),
        blocks: Count = 2,
        attention: bool = True,
        heads: Count = 4,
        dropout: Share = 0.0,
        fourier: Sequence[Positive] = (),
    ):
        super().__init__()
        channels, height, width = image_shape(shape, "unet")
        factor = 2 ** (len(widths) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"denoiser.network.widths={list(widths)}: {height}x{width} images do not halve "
                f"{len(widths) - 1} times; fewer widths are accepted"
            )
        self.shape, self.outputs, self.conditions = (channels, height, width), outputs, dict(conditions or {})
        c = 4 * widths[0]
        self.conditioning = Conditioning(c, vectors_of(self.conditions))
        self.beside = Beside(self.conditions)
        self.waves = LevelWaves(list(fourier), spacing)
        self.first = nn.Conv2d(channels * self.waves.factor + self.beside.channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [before := widths[0]]
        for level, after in enumerate(widths):
            for _ in range(blocks):
                self.down.append(Block(before, after, c, dropout))
                skips.append(before := after)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(after, after, 3, stride=2, padding=1))
                skips.append(after)
        self.middle = nn.ModuleList([Block(before, before, c, dropout), Block(before, before, c, dropout)])
        self.attention = Attention(before, heads) if attention else nn.Identity()
        for level, after in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(before + skips.pop(), after, c, dropout))
                before = after
            if level:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(after, after, 3, padding=1))
                )
        self.last_norm = nn.GroupNorm(_groups(before), before)
        self.last = zeros(nn.Conv2d(before, channels * outputs, 3, padding=1))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        h = (
            torch.cat([self.waves(z), *self.beside(z, condition)], 1)
            if self.beside.channels
            else self.waves(z)
        )
        h = self.first(h.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for layer in self.down:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, c)), c)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), c) if isinstance(layer, Block) else layer(h)
        return per_dim(self.last(silu(self.last_norm(h))), self.outputs, self.shape)


def _groups(width: int) -> int:
    """Groups of a GroupNorm: 8, or the most that divide the width."""
    return next(g for g in (8, 4, 2, 1) if width % g == 0)
