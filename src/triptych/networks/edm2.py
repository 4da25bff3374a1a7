"""EDM2's U-Net, in which each layer preserves the magnitude of its input (Karras et al. 2024).

See fig. 21. The magnitude of a vector is its root mean square. Weights are kept at magnitude 1
whatever the optimizer does, so that the learning rate alone decides how far a step turns them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.declare import Count, MinLen, Share
from triptych.diffusion.condition import Condition, Images, Kind, Labels, find_part
from triptych.networks.base import ImageNetwork, check_halves, check_head_width
from triptych.networks.conditioning import ConditionImages, class_indices

CLIP = 256.0  # limit of a block's output, for half precision


def unit(x: Tensor, dim: int | Sequence[int], eps: float = 1e-4) -> Tensor:
    """Scale x to magnitude 1 over ``dim``: x / (eps + rms), computed in single precision."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (eps + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return SiLU divided by .596, its output magnitude for standard normal inputs (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return (1 - t) a + t b, scaled to preserve the magnitude of uncorrelated parts (eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(*parts: Tensor) -> Tensor:
    """Join the channels of parts so that each part has the same weight (eq. 103, t = 1/2)."""
    half = math.sqrt(sum(part.shape[1] for part in parts)) / math.hypot(0.5, 0.5) * 0.5
    return torch.cat([half / math.sqrt(part.shape[1]) * part for part in parts], 1)


class RandomWaves(nn.Module):
    """Random Fourier features of x (B,): sqrt(2) cos(2 pi (f x + phase)), (B, width) (eq. 75).

    f is normal, phase uniform; both are fixed.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi * torch.randn(width))
        self.register_buffer("phase", 2 * math.pi * torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(x.unsqueeze(1) * self.frequency + self.phase)


class UnitLayer(nn.Module):
    """A convolution of side ``kernel``, or a linear layer, whose rows have length 1 (eq. 47).

    There is no bias; ``gain`` multiplies the output.
    """

    def __init__(self, before: int, after: int, kernel: int | None = None):
        super().__init__()
        sides = () if kernel is None else (kernel, kernel)
        weight = torch.randn(after, before, *sides)
        self.within = tuple(range(1, weight.ndim))
        self.weight = nn.Parameter(unit(weight, self.within, eps=0.0))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = unit(self.weight, self.within)
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.T
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def normalize(self) -> None:
        """Bring the stored weights to magnitude 1, to which optimizer steps are relative (eq. 66).

        This changes .data, so that autograd allows a second forward pass before the backward pass.
        """
        self.weight.data.copy_(unit(self.weight.data, self.within, eps=0.0))


class EDM2Block(nn.Module):
    """A residual block, followed by self-attention if it has heads.

    On the way down, the input is first brought to ``after`` channels and to magnitude 1 at each
    position.

    Args:
        before, after: channels of input and output; conditioning: width of its embedding; up:
            whether the block is on the way up.
        attends: whether self-attention follows, in heads of ``head_width`` channels.
        scale: factor of height and width before the block: 2, 1 or .5; dropout: share of values
            that are dropped before the second convolution.
    """

    residual, attended = 0.3, 0.3  # weights t of ``mp_sum``

    def __init__(
        self,
        before: int,
        after: int,
        attends: bool = False,
        up: bool = False,
        scale: float = 1,
        *,
        conditioning: int,
        dropout: float,
        head_width: int,
    ):
        super().__init__()
        self.up, self.scale, self.dropout = up, scale, dropout
        self.gain = nn.Parameter(torch.zeros(()))
        self.modulation = UnitLayer(conditioning, after)
        self.first, self.second = (
            UnitLayer(before if up else after, after, 3),
            UnitLayer(after, after, 3),
        )
        self.skip = UnitLayer(before, after, 1) if before != after else nn.Identity()
        self.heads = 0
        if attends:
            check_head_width(after, head_width)
            self.heads = after // head_width
            self.qkv, self.out = UnitLayer(after, 3 * after, 1), UnitLayer(after, after, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        if self.scale == 0.5:
            h = F.avg_pool2d(h, 2)
        if self.scale == 2:
            h = F.interpolate(h, scale_factor=2)
        if not self.up:
            h = unit(self.skip(h), 1)
        inner = self.first(mp_silu(h)) * (1 + self.modulation(c, self.gain))[:, :, None, None]
        inner = self.second(F.dropout(mp_silu(inner), self.dropout, self.training))
        h = mp_sum(self.skip(h) if self.up else h, inner, self.residual)
        if self.heads:
            h = mp_sum(h, self.attend(h), self.attended)
        return h.clamp(-CLIP, CLIP)

    def attend(self, h: Tensor) -> Tensor:
        """Attend by queries, keys and values of magnitude 1 in each head (cosine attention)."""
        # Shape: (B, heads, d, 3, positions).
        parts = self.qkv(h).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = unit(parts, 2).transpose(2, 4).unbind(3)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.out(mixed.reshape(h.shape))


class EDM2(ImageNetwork):
    """EDM2's U-Net; height and width are divisible by 2^(len(widths) - 1).

    Arguments that all networks share are described in ``triptych.networks``. The noise level it
    reads is that of EDM2 under EDM's process: ln(sigma) / 4 = gamma / 8. It reads labels, and
    images of the condition as channels.

    Args:
        widths: channels at each resolution, from the image's own downwards.
        blocks: residual blocks at each resolution on the way down; there is one more on the way up.
        attention_at: heights at which each block is followed by attention; the middle always has
            it.
        head_width: channels of each attention head.
        dropout: dropout in the blocks.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: Annotated[Sequence[Count], MinLen(1)] = (192, 384, 576, 768),
        blocks: Count = 3,
        attention_at: Sequence[int] = (16, 8),
        head_width: Count = 64,
        dropout: Share = 0.0,
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        check_halves(self.shape, widths)
        self.labels = {name: k for name, k in self.conditions.items() if isinstance(k, Labels)}
        check_conditions(self.conditions)
        c = max(widths)
        block = partial(EDM2Block, conditioning=c, dropout=dropout, head_width=head_width)
        heights = [self.shape[1] >> level for level in range(len(widths))]
        levels = [
            (width, height in attention_at) for width, height in zip(widths, heights, strict=True)
        ]
        self.cosines, self.level = RandomWaves(widths[0]), UnitLayer(widths[0], c)
        self.classes = nn.ModuleDict(
            {name: UnitLayer(kind.classes, c) for name, kind in self.labels.items()}
        )
        self.images = ConditionImages(self.conditions)
        self.first = UnitLayer(self.shape[0] + self.images.channels + 1, widths[0], 3)
        self.down, skips = _downward_layers(levels, blocks, block)
        self.up = nn.ModuleList()  # created here to fix the order of parameters
        lowest = widths[-1]
        self.middle = nn.ModuleList(
            [block(lowest, lowest, attends=True, up=True), block(lowest, lowest, up=True)]
        )
        self.up.extend(_upward_layers(levels, blocks, block, skips))
        self.last = UnitLayer(widths[0], self.shape[0] * self.outputs, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        if self.training:
            self.normalize()
        c = self.level(self.cosines(gamma / 8))
        for name, kind in self.labels.items():
            part = find_part(condition, name)
            label = class_indices(part, len(z), kind.classes, z.device)
            # Items without a label get a vector of zeros.
            chosen = F.one_hot(label, kind.classes + 1)[:, :-1].to(c)
            c = mp_sum(c, self.classes[name](chosen * math.sqrt(kind.classes)), 0.5)
        c = mp_silu(c)
        h = torch.cat([z, *self.images(z, condition), torch.ones_like(z[:, :1])], 1)
        h = self.first(h.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for layer in self.down:
            h = self.run_block(layer, h, c)
            skips.append(h)
        for layer in self.middle:
            h = self.run_block(layer, h, c)
        for layer in self.up:
            if layer.scale != 2:  # a layer that doubles the size has no skip connection
                h = mp_cat(h, skips.pop())
            h = self.run_block(layer, h, c)
        return self.per_dim(self.last(h, self.gain))

    def normalize(self) -> None:
        """Normalize the weights of all layers.

        It is done once before the layers are called, as gradient checkpointing calls them twice.
        """
        for layer in self.modules():
            if isinstance(layer, UnitLayer):
                layer.normalize()


def check_conditions(conditions: Mapping[str, Kind]) -> None:
    """Raise ValueError for a part of a condition that is neither labels nor an image."""
    for name, kind in conditions.items():
        if not isinstance(kind, Labels | Images):
            raise ValueError(
                f"denoiser=unet_edm2: supports only labels and images as conditions, not {name}; "
                "use denoiser=unet"
            )


def _downward_layers(
    levels: Sequence[tuple[int, bool]], blocks: int, block: Callable[..., EDM2Block]
) -> tuple[nn.ModuleList, list[int]]:
    """Return the layers of the way down, and the channels before the first and after each layer.

    ``levels``: (channels, attends) of each resolution.
    """
    layers, skips = nn.ModuleList(), [levels[0][0]]
    for number, (width, attends) in enumerate(levels):
        if number:
            layers.append(block(skips[-1], skips[-1], scale=0.5))
            skips.append(skips[-1])
        for _ in range(blocks):
            layers.append(block(skips[-1], width, attends))
            skips.append(width)
    return layers, skips


def _upward_layers(
    levels: Sequence[tuple[int, bool]],
    blocks: int,
    block: Callable[..., EDM2Block],
    skips: list[int],
) -> nn.ModuleList:
    """Return the layers of the way up; each joins one of the channels ``skips``, last first."""
    layers, before = nn.ModuleList(), levels[-1][0]
    for number, (width, attends) in reversed([*enumerate(levels)]):
        for _ in range(blocks + 1):
            layers.append(block(before + skips.pop(), width, attends, up=True))
            before = width
        if number:
            layers.append(block(before, before, up=True, scale=2))
    return layers
