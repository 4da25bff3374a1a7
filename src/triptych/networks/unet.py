"""U-Nets: residual blocks, with attention in the middle and at chosen resolutions.

Sizes range from a small one to those of DDPM (Ho et al. 2020), iDDPM (Nichol & Dhariwal 2021), ADM
(Dhariwal & Nichol 2021), EDM's DDPM++ (Song et al. 2021; Karras et al. 2022) and, at one
resolution, VDM (Kingma et al. 2021). They are in ``configs/denoiser/unet_*.yaml``, ADM in
``configs/ablation/base/adm_imagenet64.yaml``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from triptych.declare import Count, MinLen, Positive, Share
from triptych.diffusion.condition import Condition, Kind
from triptych.networks.base import (
    ImageAttention,
    ImageNetwork,
    check_halves,
    check_head_width,
    group_norm,
    zeros,
)
from triptych.networks.text import CrossAttention, Text


class UNetBlock(nn.Module):
    """A residual block of a U-Net, followed by attention.

    Its layers are norm, silu, conv, modulation by the conditioning, dropout, conv.

    Args:
        in_channels, out_channels: channels of input and output.
        conditioning: width of the embedding of noise level and condition. Other arguments: see
            ``UNet``.
        attention: function of the number of channels that returns the self-attention layer after
            the convolutions.
        resize: layer that resizes both branches; with ``resample`` "block" the short branch then
            also has a convolution.
        text: width of the text tokens of the cross-attention at the end; 0: no cross-attention.

    Attributes:
        joins: whether, on the way up, it also reads the output of a layer on the way down.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        attention: Callable[[int], nn.Module] = nn.Identity,
        resize: nn.Module | None = None,
        text: int = 0,
        *,
        conditioning: int,
        dropout: float,
        modulation: str,
        heads: int,
        groups: int,
        skip_scale: float,
        resample: str,
    ):
        super().__init__()
        self.scales, self.skip_scale = modulation == "scale_shift", skip_scale
        self.first_norm = group_norm(in_channels, groups)
        self.joins = not isinstance(resize, nn.Upsample)
        self.resize = nn.Identity() if resize is None else resize
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = zeros(nn.Linear(conditioning, (1 + self.scales) * out_channels))
        self.second_norm = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.second = zeros(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        layered = in_channels != out_channels or (resize is not None and resample == "block")
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if layered else nn.Identity()
        self.attention = attention(out_channels)
        self.text = CrossAttention(out_channels, heads, text, groups) if text else None

    def forward(self, h: Tensor, c: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        inner = self.first(self.resize(silu(self.first_norm(h))))
        modulation = self.modulation(c)[:, :, None, None]
        if self.scales:
            scale, shift = modulation.chunk(2, 1)
            inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        else:
            inner = self.second_norm(inner + modulation)
        h = self.skip(self.resize(h)) + self.second(self.dropout(silu(inner)))
        if self.skip_scale != 1:
            h = h * self.skip_scale
        h = self.attention(h)
        if self.text is not None:
            h = self.text(h, text)
        return h


class Halve(nn.Conv2d):
    """Halve height and width by one convolution, called as a block (DDPM)."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, stride=2, padding=1)

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        return super().forward(h)


class Double(nn.Sequential):
    """Double height and width, then one convolution, called as a block (DDPM)."""

    joins = False

    def __init__(self, width: int):
        super().__init__(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        return super().forward(h)  # type: ignore[no-any-return, no-untyped-call]  # torch's


@dataclass(frozen=True)
class UNetLevel:
    """One resolution of a U-Net: channels, function that makes attention, width of text tokens."""

    width: int
    attention: Callable[[int], nn.Module]
    text: int


class UNet(ImageNetwork):
    """A U-Net for images; height and width are divisible by 2^(len(widths) - 1).

    Arguments that all networks share are described in ``triptych.networks``.

    Args:
        widths: channels at each resolution, from the image's own downwards.
        blocks: residual blocks at each resolution on the way down; there is one more on the way up.
        attention: whether there is self-attention in the middle, at the lowest resolution.
        heads, head_width: number of attention heads; or, in its place, the channels of each head
            (ADM).
        dropout: dropout in the blocks.
        attention_at: heights at which each block is followed by self-attention too, such as [16,
            8].
        attention_up: on the way up, attention follows "each" block of these resolutions or only the
            "last" (DDPM++).
        text_at: heights at which each block is followed by attention to the tokens of a text, such
            as [8, 4].
        modulation: how noise level and condition modulate a block: "scale_shift" after its second
            norm (iDDPM), or "shift" before it (DDPM, VDM).
        stem: channels of the first layer; None: those of the first resolution.
        conditioning: width of the embedding of gamma and condition; None: four times the stem.
        resample: layers between resolutions: "conv", one convolution (DDPM); "block", a residual
            block (DDPM++); or "bare_block", a residual block without a layer on its short branch
            (ADM).
        skip_scale: factor of each residual sum; sqrt(1 / 2) keeps the variance of two equal parts
            (DDPM++).
        groups: groups of each GroupNorm, or the most that divide its channels; 32 in the
            publications.
        add_z: add z to the output, as a first guess of the noise (VDM); for one output per
            dimension.
        fourier: see ``ImageNetwork.read``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: Annotated[Sequence[Count], MinLen(1)] = (32, 48, 48),
        blocks: Count = 2,
        attention: bool = True,
        heads: Count = 4,
        dropout: Share = 0.0,
        fourier: Sequence[Positive] = (),
        attention_at: Sequence[Count] = (),
        attention_up: Literal["each", "last"] = "each",
        modulation: Literal["scale_shift", "shift"] = "scale_shift",
        resample: Literal["conv", "block", "bare_block"] = "conv",
        stem: Count | None = None,
        conditioning: Count | None = None,
        skip_scale: Positive = 1.0,
        groups: Count = 8,
        add_z: bool = False,
        text_at: Sequence[Count] = (),
        head_width: Count | None = None,
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        stem = stem or widths[0]
        c = conditioning or 4 * stem
        self.read(c, fourier)
        check_halves(self.shape, widths)
        heights = [self.shape[1] >> level for level in range(len(widths))]
        check_resolutions("attention_at", attention_at, heights)
        check_resolutions("text_at", text_at, heights)
        self.add_z = add_z
        self.first = nn.Conv2d(self.channels, stem, 3, padding=1)
        self.block = partial(
            UNetBlock,
            conditioning=c,
            dropout=dropout,
            modulation=modulation,
            heads=heads,
            groups=groups,
            skip_scale=skip_scale,
            resample=resample,
        )
        self.by_conv = resample == "conv"
        attend = partial(
            attention_layer,
            heads=heads,
            head_width=head_width,
            groups=groups,
            skip_scale=skip_scale,
        )
        levels = [
            UNetLevel(
                width,
                attention=attend if height in attention_at else nn.Identity,
                text=c if height in text_at else 0,
            )
            for width, height in zip(widths, heights, strict=True)
        ]
        self.text = text_embedding(self.conditions, c, text_at)
        self.down, skips = self._downward_layers(levels, blocks, stem)
        self.up = nn.ModuleList()  # created here to fix the order of parameters
        lowest = levels[-1]
        self.middle = nn.ModuleList(
            [
                self.block(lowest.width, lowest.width, text=lowest.text),
                self.block(lowest.width, lowest.width),
            ]
        )
        self.attention = attend(lowest.width) if attention else nn.Identity()
        self.up.extend(self._upward_layers(levels, blocks, skips, attention_up))
        self.last_norm = group_norm(widths[0], groups)
        self.last = zeros(nn.Conv2d(widths[0], self.shape[0] * self.outputs, 3, padding=1))

    def _downward_layers(
        self, levels: Sequence[UNetLevel], blocks: int, stem: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """Return the layers of the way down, and the channels before the first and after each."""
        layers, skips = nn.ModuleList(), [stem]
        for number, level in enumerate(levels):
            if number:
                layers.append(self._downsampling_layer(skips[-1]))
                skips.append(skips[-1])
            for _ in range(blocks):
                layers.append(self.block(skips[-1], level.width, level.attention, text=level.text))
                skips.append(level.width)
        return layers, skips

    def _upward_layers(
        self, levels: Sequence[UNetLevel], blocks: int, skips: list[int], attention_up: str
    ) -> nn.ModuleList:
        """Return the layers of the way up; each joins one of the channels ``skips``, last first."""
        layers, before = nn.ModuleList(), levels[-1].width
        for number, level in reversed([*enumerate(levels)]):
            for i in range(blocks + 1):
                attends = attention_up == "each" or i == blocks
                attention = level.attention if attends else nn.Identity
                joined = before + skips.pop()
                layers.append(self.block(joined, level.width, attention, text=level.text))
                before = level.width
            if number:
                layers.append(self._upsampling_layer(before))
        return layers

    def _downsampling_layer(self, width: int) -> nn.Module:
        if self.by_conv:
            return Halve(width)
        return self.block(width, width, resize=nn.AvgPool2d(2))

    def _upsampling_layer(self, width: int) -> nn.Module:
        if self.by_conv:
            return Double(width)
        return self.block(width, width, resize=nn.Upsample(scale_factor=2))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        features = self.features(z, condition)
        h = self.first(features.contiguous(memory_format=torch.channels_last))
        text = None if self.text is None else self.text(condition, len(z))
        skips = [h]
        for layer in self.down:
            h = self.run_block(layer, h, c, text)
            skips.append(h)
        h = self.run_block(self.middle[0], h, c, text)
        h = self.run_block(self.attention, h)
        h = self.run_block(self.middle[1], h, c)
        for layer in self.up:
            if layer.joins:
                h = torch.cat([h, skips.pop()], 1)
            h = self.run_block(layer, h, c, text)
        raw = self.per_dim(self.last(silu(self.last_norm(h))))
        return raw + z if self.add_z else raw


def attention_layer(
    width: int, *, heads: int, head_width: int | None, groups: int, skip_scale: float
) -> ImageAttention:
    """Return an attention layer over ``width`` channels; ``head_width`` replaces ``heads``."""
    if head_width is None:
        return ImageAttention(width, heads, groups, skip_scale)
    check_head_width(width, head_width)
    return ImageAttention(width, width // head_width, groups, skip_scale)


def text_embedding(
    conditions: Mapping[str, Kind], width: int, text_at: Sequence[int]
) -> Text | None:
    """Return the module that embeds the condition's text; None if no resolution reads it."""
    if not text_at:
        return None
    text = Text(conditions, width)
    if not text.kinds:
        raise ValueError(
            f"denoiser.network.text_at={list(text_at)}: the condition has no text; set [], or use "
            "captioned data and model.conditional=[text]"
        )
    return text


def check_resolutions(key: str, chosen: Sequence[int], resolutions: Sequence[int]) -> None:
    """Raise ValueError unless each height ``chosen`` for the argument ``key`` is a resolution's."""
    unknown = sorted({*chosen} - {*resolutions})
    if unknown:
        raise ValueError(
            f"denoiser.network.{key}={list(chosen)}: no resolution has height {unknown[0]}; use "
            f"heights of {', '.join(map(str, resolutions))}"
        )
