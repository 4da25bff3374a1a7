"""Attention from the positions of an image to the tokens of a text."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from triptych.diffusion.condition import Condition, Kind, Tokens, find_part
from triptych.networks.base import check_heads, group_norm, zeros

# The number of tokens is rounded up to a multiple of this: attention on CPUs takes five times as
# long for 12 keys as for 16 (AVX-512, torch 2.13).
KEYS_MULTIPLE = 16


class Text(nn.Module):
    """The tokens of a condition, (B, N, width), and a mask (B, N) of those that exist.

    N is rounded up to a multiple of 16. One learned token comes first. If the text is absent, it is
    the only one, so that the network predicts without a text (Ho & Salimans 2022).
    """

    def __init__(self, conditions: Mapping[str, Kind], width: int):
        super().__init__()
        self.kinds = {name: kind for name, kind in conditions.items() if isinstance(kind, Tokens)}
        self.null = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.layers = nn.ModuleDict(
            {name: nn.Linear(kind.width, width) for name, kind in self.kinds.items()}
        )
        self.positions = nn.ParameterDict(
            {
                name: nn.Parameter(0.02 * torch.randn(kind.length, width))
                for name, kind in self.kinds.items()
            }
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, condition: Condition | None, items: int) -> tuple[Tensor, Tensor]:
        tokens = [self.null.expand(items, -1, -1)]
        masks = [torch.ones(items, 1, dtype=torch.bool, device=self.null.device)]
        for name in self.kinds:
            part = find_part(condition, name)
            if part is None:
                # Add as many (masked) tokens as for a part that is present, so that an item has the
                # same result if the part is absent for this item only.
                tokens.append(self.positions[name].expand(items, -1, -1))
                masks.append(torch.zeros_like(tokens[-1][..., 0], dtype=torch.bool))
                continue
            h = self.layers[name](part.value)
            tokens.append(h + self.positions[name][: h.shape[1]])
            masks.append(part.token_mask() & part.presence().unsqueeze(1))
        h, mask = self.norm(torch.cat(tokens, 1)), torch.cat(masks, 1)
        spare = -h.shape[1] % KEYS_MULTIPLE
        return pad(h, (0, 0, 0, spare)), pad(mask, (0, spare))


class CrossAttention(nn.Module):
    """Cross-attention of image positions (B, C, H, W) to tokens (B, N, width), with a residual.

    softmax(q k^T / sqrt(d)) v, as in the U-Nets of text-to-image models (Rombach et al. 2022, sec.
    3.3; Saharia et al. 2022, app. B.1).
    """

    def __init__(self, channels: int, heads: int, width: int, groups: int):
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.q, self.kv = nn.Conv2d(channels, channels, 1), nn.Linear(width, 2 * channels)
        self.out = zeros(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        tokens, mask = text
        b, channels, height, width = h.shape
        q = self.q(self.norm(h)).view(b, self.heads, channels // self.heads, -1).transpose(2, 3)
        k, v = self.kv(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return h + self.out(mixed.transpose(2, 3).reshape(b, channels, height, width))
