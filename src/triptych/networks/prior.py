"""A transformer over the condition and the noisy vector, for the prior of DALL-E 2.

Ramesh et al. 2022, sec. 2.2: the sequence is the encoded text, the text's embedding, an embedding
of the noise level, the noisy image embedding, and a final token, whose output is the prediction.
The paper uses a causal mask. Here every token attends to every other, so that no token is left
without keys if the text is absent.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from triptych.declare import Count, Share
from triptych.diffusion.condition import Condition, Tokens, find_part
from triptych.networks.base import Network, check_heads, transformer, zeros
from triptych.networks.conditioning import EMBEDDERS, Conditioning


class Prior(Network):
    """The transformer of DALL-E 2's prior; events of any shape are flattened.

    Arguments that all networks share are described in ``triptych.networks``. Each token of a text
    is one token of the sequence, and so is each other part of the condition. ``width``, that of the
    transformer, is a multiple of ``heads``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: Count = 96,
        depth: Count = 2,
        heads: Count = 4,
        dropout: Share = 0.0,
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        check_heads(width, heads)
        dims = math.prod(self.shape)
        texts = {name: kind for name, kind in self.conditions.items() if isinstance(kind, Tokens)}
        others = {name: kind for name, kind in self.conditions.items() if name not in texts}
        self.texts = nn.ModuleDict(
            {name: nn.Linear(kind.width, width) for name, kind in texts.items()}
        )
        self.others = nn.ModuleDict(
            {name: EMBEDDERS[type(kind)](kind, width) for name, kind in others.items()}
        )
        self.conditioning = Conditioning(width)
        self.first = nn.Linear(dims, width)
        self.query = nn.Parameter(0.1 * torch.randn(1, 1, width))
        places = sum(kind.length for kind in texts.values()) + len(others) + 3
        self.position = nn.Parameter(0.1 * torch.randn(places, width))
        self.layers = transformer(width, depth, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.last = zeros(nn.Linear(width, dims * self.outputs))

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        n = len(z)
        tokens, masks = [], []
        for name, layer in self.texts.items():
            kind, part = self.conditions[name], find_part(condition, name)
            assert isinstance(kind, Tokens)
            mask = z.new_zeros(n, kind.length, dtype=torch.bool)
            value = z.new_zeros(n, kind.length, kind.width)
            if part is not None:
                length = part.value.shape[1]
                value[:, :length] = part.value
                mask[:, :length] = part.token_mask() & part.presence().unsqueeze(1)
            tokens.append(layer(value))
            masks.append(mask)
        for name, embed in self.others.items():
            tokens.append(embed(find_part(condition, name), n).unsqueeze(1))
        tokens += [self.conditioning(gamma).unsqueeze(1), self.first(z.flatten(1)).unsqueeze(1)]
        h = torch.cat([*tokens, self.query.expand(n, -1, -1)], 1) + self.position
        masks.append(z.new_ones(n, h.shape[1] - sum(m.shape[1] for m in masks), dtype=torch.bool))
        h = self.layers(h, src_key_padding_mask=~torch.cat(masks, 1))[:, -1]
        return self.per_dim(self.last(self.norm(h)))
