"""U-Nets: residual blocks, with attention in the middle and at chosen resolutions.

Sizes range from a small one to those of DDPM (Ho et al. 2020), iDDPM (Nichol & Dhariwal 2021), ADM
(Dhariwal & Nichol 2021), EDM's DDPM++ (Song et al. 2021; Karras et al. 2022) and, at one
resolution, VDM (Kingma et al. 2021). They are in ``configs/denoiser/unet_*.yaml``, ADM in
``configs/ablation/base/adm_imagenet64.yaml``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from triptych.declare import Count, MinLen, Positive, Share
from triptych.diffusion.condition import Condition
from triptych.networks.base import ImageAttention, ImageNetwork, group_norm, zeros
from triptych.networks.text import CrossAttention, Text


class UNetBlock(nn.Module):
    """A residual block of a U-Net, followed by attention.

    Its layers are norm, silu, conv, modulation by the conditioning, dropout, conv.

    Args:
        before, after: channels before and after the block.
        conditioning: width of the conditioning.
        attention: function that makes the self-attention layer for a number of channels; None: no
            self-attention.
        resize: layer that resizes both branches; with ``resample`` "block" the short branch then
            has its own convolution.
        text: width of the tokens that positions attend to at the end; 0: no cross-attention.
        dropout, modulation, heads, groups, skip_scale, resample: see ``UNet``.
    """

    def __init__(
        self,
        before: int,
        after: int,
        attention: Callable[[int], nn.Module] | None = None,
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
        self.first_norm = group_norm(before, groups)
        self.resize = resize or nn.Identity()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = zeros(nn.Linear(conditioning, (1 + self.scales) * after))
        self.second_norm = group_norm(after, groups)
        self.dropout = nn.Dropout(dropout)
        self.second = zeros(nn.Conv2d(after, after, 3, padding=1))
        layered = before != after or (resize and resample == "block")
        self.skip = nn.Conv2d(before, after, 1) if layered else nn.Identity()
        self.attention = attention(after) if attention else nn.Identity()
        self.text = CrossAttention(after, heads, text, groups) if text else None

    def forward(self, h: Tensor, c: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        inner = self.first(self.resize(silu(self.first_norm(h))))
        modulation = self.modulation(c)[:, :, None, None]
        if self.scales:
            scale, shift = modulation.chunk(2, 1)
            inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        else:
            inner = self.second_norm(inner + modulation)
        h = self.skip(self.resize(h)) + self.second(self.dropout(silu(inner)))
        h = self.attention(h if self.skip_scale == 1 else h * self.skip_scale)
        return h if self.text is None or text is None else self.text(h, text)  # type: ignore[no-any-return]


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
        before = stem or widths[0]
        c = conditioning or 4 * before
        self.read(c, fourier)
        channels, height, width = self.shape
        factor = 2 ** (len(widths) - 1)
        if height % factor or width % factor:
            problem = f"{height}x{width} images do not halve {len(widths) - 1} times"
            raise ValueError(f"denoiser.network.widths={list(widths)}: {problem}; set fewer widths")
        heights = [height >> level for level in range(len(widths))]
        for key, chosen in (("attention_at", attention_at), ("text_at", text_at)):
            if strange := sorted(set(chosen) - set(heights)):
                problem = f"no resolution has height {strange[0]}; must be of {', '.join(map(str, heights))}"
                raise ValueError(f"denoiser.network.{key}={list(chosen)}: {problem}")
        if add_z and self.outputs > 1:
            problem = f"z is added to one number a dimension, not to {self.outputs}"
            fix = "use objective=epsilon without a learned variance, or add_z=false"
            raise ValueError(f"denoiser.network.add_z=true: {problem}; {fix}")
        self.add_z = add_z
        self.first = nn.Conv2d(self.channels, before, 3, padding=1)
        block = partial(
            UNetBlock, conditioning=c, dropout=dropout, modulation=modulation, heads=heads, groups=groups,
            skip_scale=skip_scale, resample=resample,
        )  # fmt: skip

        def attend(width: int) -> ImageAttention:
            number, rest = divmod(width, head_width) if head_width else (heads, 0)
            if rest:
                key = f"denoiser.network.head_width={head_width}"
                raise ValueError(f"{key}: {width} channels are no multiple of it; pass a divisor, or null")
            return ImageAttention(width, number, groups, skip_scale)

        at = [attend if there in attention_at else None for there in heights]
        self.text = Text(self.conditions, c) if text_at else None
        if self.text is not None and not self.text.kinds:
            fix = "set [], or data with captions and model.conditional=[text]"
            raise ValueError(f"denoiser.network.text_at={list(text_at)}: the condition has no text; {fix}")
        reads = [c if there in text_at else 0 for there in heights]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [before]
        for level, after in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(before, after, at[level], text=reads[level]))
                skips.append(before := after)
            if level < len(widths) - 1:
                self.down.append(
                    nn.Conv2d(after, after, 3, stride=2, padding=1)
                    if resample == "conv"
                    else block(after, after, resize=nn.AvgPool2d(2))
                )
                skips.append(after)
        self.middle = nn.ModuleList([block(before, before, text=reads[-1]), block(before, before)])
        self.attention = attend(before) if attention else nn.Identity()
        for level, after in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                attends = attention_up == "each" or i == blocks
                joined = before + skips.pop()
                self.up.append(block(joined, after, at[level] if attends else None, text=reads[level]))
                before = after
            if level:
                double = nn.Upsample(scale_factor=2)
                self.up.append(
                    nn.Sequential(double, nn.Conv2d(after, after, 3, padding=1))
                    if resample == "conv"
                    else block(after, after, resize=double)
                )
        self.last_norm = group_norm(before, groups)
        self.last = zeros(nn.Conv2d(before, channels * self.outputs, 3, padding=1))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        c = self.conditioning(gamma, condition)
        h = self.first(self.features(z, condition).contiguous(memory_format=torch.channels_last))
        text = None if self.text is None else self.text(condition, len(z))
        skips = [h]
        for layer in self.down:
            h = layer(h, c, text) if isinstance(layer, UNetBlock) else layer(h)
            skips.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, c, text)), c)
        for layer in self.up:
            if not isinstance(layer, UNetBlock):
                h = layer(h)
            # A block that doubles the size joins no skip connection.
            else:
                joined = h if isinstance(layer.resize, nn.Upsample) else torch.cat([h, skips.pop()], 1)
                h = layer(joined, c, text)
        raw = self.per_dim(self.last(silu(self.last_norm(h))))
        return raw + z if self.add_z else raw
