"""Embed gamma and a condition as one vector, and the condition's images as further channels.

Each part has its own embedder, chosen by the part's kind, with a separate value for "absent".
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from triptych.diffusion.condition import (
    Condition,
    Images,
    Kind,
    Labels,
    Part,
    Tokens,
    Vectors,
    find_part,
)


def class_indices(part: Part | None, items: int, null: int, device: torch.device) -> Tensor:
    """Return the class of each item, (items,); ``null`` for items without a label."""
    if part is None:
        return torch.full((items,), null, device=device)
    if part.present is None:
        return part.value
    return torch.where(part.present, part.value, null)


class LabelEmbedding(nn.Embedding):
    """An embedding with a row for each class and a last row for "no label"."""

    def __init__(self, kind: Labels, width: int):
        super().__init__(kind.classes + 1, width)

    # The base class accepts any arguments.
    def forward(self, part: Part | None, items: int) -> Tensor:  # type: ignore[override]
        return super().forward(
            class_indices(part, items, self.num_embeddings - 1, self.weight.device)
        )


class _Embedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, part: Part | None, items: int) -> Tensor:
        null = self.null.expand(items, -1)
        if part is None:
            return null
        value = self.embed(part)
        if part.present is None:
            return value
        return torch.where(part.present.unsqueeze(1), value, null)

    def embed(self, part: Part) -> Tensor:
        raise NotImplementedError("embed() is not defined")


class VectorEmbedding(_Embedder):
    """Embed a vector (B, d), or a flattened image, by two layers."""

    def __init__(self, kind: Vectors | Images, width: int):
        super().__init__(width)
        self.layers = nn.Sequential(
            nn.Linear(math.prod(kind.shape), width), nn.SiLU(), nn.Linear(width, width)
        )

    def embed(self, part: Part) -> Tensor:
        return self.layers(part.value.flatten(1))


class TokenEmbedding(_Embedder):
    """Embed tokens (B, length, d) as one vector, by attention with one learned query.

    Only the tokens in the mask take part.
    """

    def __init__(self, kind: Tokens, width: int):
        super().__init__(width)
        self.weigh, self.layer = nn.Linear(kind.width, 1), nn.Linear(kind.width, width)
        self.position = nn.Parameter(0.02 * torch.randn(kind.length, kind.width))

    def embed(self, part: Part) -> Tensor:
        tokens = part.value + self.position[: part.value.shape[1]]
        score = self.weigh(tokens).squeeze(2)
        # Use the smallest finite number, not -inf, so that an empty text gives finite weights.
        if part.mask is not None:
            score = score.masked_fill(~part.mask, torch.finfo(score.dtype).min)
        return (score.softmax(1).unsqueeze(2) * self.layer(tokens)).sum(1)


EMBEDDERS: dict[type, type[nn.Module]] = {
    Labels: LabelEmbedding,
    Vectors: VectorEmbedding,
    Images: VectorEmbedding,
    Tokens: TokenEmbedding,
}


class Conditioning(nn.Module):
    """Embed gamma (B,) and an optional condition as a vector (B, width).

    gamma is read through ``waves`` sines with periods from 30 to 1. The embedding therefore does
    not depend on a schedule's endpoints, and a trained network can be used under any other
    schedule.
    """

    frequency: Tensor

    def __init__(self, width: int, conditions: Mapping[str, Kind] | None = None, waves: int = 16):
        super().__init__()
        frequency = torch.exp(
            torch.linspace(math.log(2 * math.pi / 30), math.log(2 * math.pi), waves)
        )
        self.register_buffer("frequency", frequency, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))
        conditions = conditions or {}
        self.names = tuple(conditions)
        for name, kind in conditions.items():
            self.add_module(name, EMBEDDERS[type(kind)](kind, width))

    @property
    def with_null(self) -> list[str]:
        """The parts with a weight for absent items, which has no gradient if no item is absent."""
        return [name for name in self.names if isinstance(self.get_submodule(name), _Embedder)]

    def forward(self, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        angle = gamma.unsqueeze(1) * self.frequency
        h = self.layers(torch.cat([angle.sin(), angle.cos()], 1))
        for name in self.names:
            h = h + self.get_submodule(name)(find_part(condition, name), len(gamma))
        return nn.functional.silu(h)


class ConditionImages(nn.Module):
    """Resize a condition's images to channels beside z; another channel marks their presence.

    Super-resolution conditions on its input in this way (Saharia et al. 2021; Ho et al. 2022,
    cascades).
    """

    def __init__(self, conditions: Mapping[str, Kind]):
        super().__init__()
        self.images = {name: kind for name, kind in conditions.items() if isinstance(kind, Images)}
        self.channels = sum(kind.shape[0] + 1 for kind in self.images.values())

    def forward(self, z: Tensor, condition: Condition | None) -> list[Tensor]:
        channels = []
        for name, kind in self.images.items():
            part = find_part(condition, name)
            if part is None:
                channels.append(z.new_zeros(len(z), kind.shape[0] + 1, *z.shape[2:]))
                continue
            present = part.presence().to(z).view(-1, 1, 1, 1)
            image = interpolate(
                part.value.to(z), size=z.shape[2:], mode="bilinear", align_corners=False
            )
            channels += [present * image, present.expand(-1, 1, *z.shape[2:])]
        return channels
