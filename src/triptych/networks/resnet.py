"""A residual network at one resolution, after VDM (Kingma et al. 2021, appendix B).

Three choices serve every objective alike:

- Fourier features of z that fit the data's levels. At low noise the ideal denoiser is a staircase onto the
  levels, which convolutions of z alone learn slowly.
- The input features go once more, scaled but unmixed, into the last convolution.
- A gain exp(a(gamma)) per channel before that convolution: a score grows as 1 / sigma, a gain covers that.

The last convolution starts at zero and is made last, so all other initial weights are the same for any
``outputs``.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from triptych.declare import Count, Positive, Share, declared
from triptych.diffusion.condition import Condition, Kind
from triptych.networks.conditioning import Beside, Conditioning, vectors_of
from triptych.networks.embedding import LevelWaves, image_shape, per_dim, zeros


class Block(nn.Module):
    """norm, silu, conv, norm modulated by the conditioning, silu, channel dropout, conv; residual."""

    def __init__(self, width: int, conditioning: int, dropout: float):
        super().__init__()
        self.first_norm, self.second_norm = _norm(width), _norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = zeros(nn.Conv2d(width, width, 3, padding=1))
        self.modulation = zeros(nn.Linear(conditioning, 2 * width))
        self.dropout = nn.Dropout2d(
            dropout
        )  # by channel: a mask for each element costs a quarter of a step on a CPU

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(silu(self.first_norm(h)))
        inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        return h + self.second(self.dropout(silu(inner)))


class Attention(nn.Module):
    """One head of self-attention over all positions, added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeros(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        tokens = self.qkv(self.norm(h)).flatten(2).transpose(1, 2)  # (B, H W, 3 width)
        mixed = scaled_dot_product_attention(*tokens.unsqueeze(1).chunk(3, dim=-1)).squeeze(1)
        return h + self.out(mixed.transpose(1, 2).unflatten(2, h.shape[2:]))


@declared("denoiser.network")
class ResNet(nn.Module):
    """See ``triptych.networks`` for the contract.

    Args:
        width, blocks: channels and residual blocks; ``attention``: one layer of it in the middle.
        dropout: share of a block's channels dropped in training.
        fourier: periods of ``LevelWaves``, in units of the level spacing; empty for none.
        conditioning: width of the embedding of gamma and condition.
        shape, outputs, conditions, spacing: from the data and the objective.

    Raises:
        ValueError: the data are no images, or have no levels for ``fourier`` to fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        conditions: Mapping[str, Kind] | None = None,
        spacing: float | None = None,
        width: Count = 32,
        blocks: Count = 4,
        attention: bool = False,
        dropout: Share = 0.0,
        fourier: Sequence[Positive] = (4, 2, 1),
        conditioning: Count = 64,
    ):
        super().__init__()
        self.shape, self.outputs, self.conditions = (
            image_shape(shape, "resnet"),
            outputs,
            dict(conditions or {}),
        )
        channels = self.shape[0]
        self.waves = LevelWaves(list(fourier), spacing)
        self.beside = Beside(self.conditions)
        features = channels * self.waves.factor + self.beside.channels
        self.conditioning = Conditioning(conditioning, vectors_of(self.conditions))
        self.first = nn.Conv2d(features, width, 3, padding=1)
        self.position = nn.Parameter(0.1 * torch.randn(1, width, *self.shape[1:]))
        layers: list[nn.Module] = [Block(width, conditioning, dropout) for _ in range(blocks)]
        if attention:
            layers.insert(blocks // 2, Attention(width))
        self.layers = nn.ModuleList(layers)
        self.last_norm = _norm(width)
        self.gains = zeros(nn.Linear(conditioning, width + features))
        self.last = zeros(nn.Conv2d(width + features, channels * outputs, 3, padding=1))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        x = (
            torch.cat([self.waves(z), *self.beside(z, condition)], 1)
            if self.beside.channels
            else self.waves(z)
        )
        x = x.contiguous(memory_format=torch.channels_last)  # the layout that convolutions on a CPU like
        h = self.first(x) + self.position
        for layer in self.layers:
            h = layer(h, c)
        h = torch.cat([silu(self.last_norm(h)), x], dim=1)
        return per_dim(self.last(h * self.gains(c)[:, :, None, None].exp()), self.outputs, self.shape)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)
