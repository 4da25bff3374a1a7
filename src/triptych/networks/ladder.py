"""Ladders: encoders and decoders of hierarchical VAEs, which give means and log deviations.

A ladder of L levels over data of event shape ``shape`` holds

    encoders   L modules      z_{l-1} (z_0 = x) -> (B, 2 c_l, ...): mean, log std of z_l in dim 1
    decoders   L - 1 modules  z_l -> the same of z_{l-1}, for l = 2 ... L
    head       1 module       z_1 -> (B, *shape), or (B, outputs, *shape); the model reads it
    top        shape          event shape of z_L

Each module reads its one argument and nothing else: the chain is Markov in both directions.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from triptych.declare import Count, MinLen, Whole, declared
from triptych.networks.base import per_dim


@declared("model.network")
class Ladder(nn.Module):
    """The interface of a ladder, as models use it."""

    encoders: nn.ModuleList
    decoders: nn.ModuleList
    head: nn.Module
    top: tuple[int, ...]


class MLPLadder(Ladder):
    """A fully connected ladder, for points and other small events.

    Args:
        shape, outputs: from the data and the model.
        latents: dimensions of z_1 ... z_L.
        width, depth: units and number of the hidden layers of each module; depth 0 is linear (with
            one level: probabilistic PCA).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        latents: Annotated[Sequence[Count], MinLen(1)] = (2,),
        width: Count = 128,
        depth: Whole = 2,
    ):
        super().__init__()
        dims = [math.prod(shape), *latents]
        self.encoders = nn.ModuleList(
            _mlp(a, 2 * b, width, depth) for a, b in itertools.pairwise(dims)
        )
        self.decoders = nn.ModuleList(
            _mlp(b, 2 * a, width, depth) for a, b in itertools.pairwise(dims[1:])
        )
        self.head = Shaped(_mlp(dims[1], outputs * dims[0], width, depth), shape, outputs)
        self.top = (dims[-1],)


class Shaped(nn.Module):
    """A network whose flat output is reshaped by ``per_dim``."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], outputs: int):
        super().__init__()
        self.network, self.shape, self.outputs = network, tuple(shape), outputs

    def forward(self, z: Tensor) -> Tensor:
        return per_dim(self.network(z), self.outputs, self.shape)


def _mlp(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
