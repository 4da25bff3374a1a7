"""Networks that embed images and texts as unit vectors in one space, for contrastive learning.

As in CLIP (Radford et al. 2021, sec. 2.3), similarity is the cosine divided by a learned
temperature.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize, silu

from triptych.declare import Count, Ge, Le, Share, declared
from triptych.diffusion.condition import Kind, Part, Tokens
from triptych.networks.base import check_heads, image_shape, transformer
from triptych.networks.conv_ladder import Residual

Layers = Annotated[int, Ge(1), Le(64)]
TEMPERATURE = 0.07  # initial value (Radford et al. 2021, sec. 2.4)


class ImageTower(nn.Module):
    """Embed images by residual stages of falling size: (B, C, H, W) -> (B, embedding).

    Each stage has half the size of the one before.
    """

    def __init__(
        self, shape: tuple[int, int, int], embedding: int, width: int, blocks: int, stages: int
    ):
        super().__init__()
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        # Add a position embedding, as convolutions followed by a mean do not depend on positions.
        self.position = nn.Parameter(0.1 * torch.randn(1, width, *shape[1:]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(blocks))) for _ in range(stages)
        )
        self.last = nn.Linear(16 * width, embedding)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.position
        for number, stage in enumerate(self.stages):
            if number and min(h.shape[2:]) > 4:
                h = avg_pool2d(h, 2)
            h = stage(h)
        return self.last(adaptive_avg_pool2d(silu(h), 4).flatten(1))


class TextTower(nn.Module):
    """Embed texts by a transformer over their tokens: (B, L, d) -> (B, embedding).

    The output is read from the mean over the tokens in the mask.
    """

    def __init__(
        self, kind: Tokens, embedding: int, width: int, depth: int, heads: int, dropout: float
    ):
        super().__init__()
        self.first = nn.Linear(kind.width, width)
        self.position = nn.Parameter(0.1 * torch.randn(kind.length, width))
        self.layers = transformer(width, depth, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, embedding)

    def forward(self, part: Part) -> Tensor:
        tokens, mask = part.value, part.token_mask()
        h = self.first(tokens) + self.position[: tokens.shape[1]]
        h = self.norm(self.layers(h, src_key_padding_mask=~mask))
        share = mask.unsqueeze(2).to(h)
        return self.last((h * share).sum(1) / share.sum(1))


@declared("model.network")
class ContrastiveNetwork(nn.Module):
    """Embed images and texts: (images, texts) -> unit vectors u, v (B, embedding) each.

    ``scale`` is one over the temperature.

    Args:
        shape, conditions: from the data: images (C, H, W), and the part "text", of kind Tokens.
        embedding: dimensions of the shared space.
        width, blocks, stages: channels of the image tower, residual blocks per stage, and stages.
        text_width, depth, heads, dropout: sizes of the text tower's transformer.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, Kind] | None = None,
        embedding: Annotated[int, Ge(2)] = 32,
        width: Count = 32,
        blocks: Layers = 1,
        stages: Layers = 3,
        text_width: Count = 64,
        depth: Layers = 2,
        heads: Count = 4,
        dropout: Share = 0.0,
    ):
        super().__init__()
        text = (conditions or {}).get("text")
        if not isinstance(text, Tokens):
            raise ValueError(
                "model.network: needs images with text; use captioned data, such as data=shapes"
            )
        check_heads(text_width, heads, "model.network")
        self.shape, self.text, self.embedding = (
            image_shape(shape, "contrastive", "images"),
            text,
            embedding,
        )
        self.sizes: dict[str, Any] = {
            "embedding": embedding, "width": width, "blocks": blocks, "stages": stages,
            "text_width": text_width, "depth": depth, "heads": heads, "dropout": dropout,
        }  # fmt: skip
        self.image_tower = ImageTower(self.shape, embedding, width, blocks, stages)
        self.text_tower = TextTower(text, embedding, text_width, depth, heads, dropout)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def images(self, x: Tensor) -> Tensor:
        return normalize(self.image_tower(x), dim=1)

    def texts(self, part: Part) -> Tensor:
        return normalize(self.text_tower(part), dim=1)

    def forward(self, x: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        return self.images(x), self.texts(part)
