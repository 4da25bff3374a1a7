"""A ladder with convolutions, for images: residual modules, and latents that are images too."""

import torch
from torch import Tensor, nn

from triptych.declare import Count, Whole
from triptych.networks.base import group_norm, image_shape, per_dim
from triptych.networks.ladder import Ladder


class Residual(nn.Module):
    """A residual block: h + conv silu norm conv silu norm h."""

    def __init__(self, width: int):
        super().__init__()
        last, first = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            group_norm(width), nn.SiLU(), first, group_norm(width), nn.SiLU(), last
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class LadderModule(nn.Module):
    """A residual network from one image to another, of the same size, half of it or twice it.

    The last convolution starts near zero, so at first a conditional is close to N(0, 1). Between
    latents of one size it is N(.95 z, .37^2) instead: a level that starts disconnected from the
    data would hardly recover.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        width: int,
        blocks: int,
        scale: float,
    ):
        super().__init__()
        first: nn.Module = nn.Conv2d(inputs, width, 3, padding=1)
        if scale == 0.5:
            first = nn.Conv2d(inputs, width, 4, stride=2, padding=1)
        elif scale == 2:
            first = nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1)
        self.first = first
        self.adds_input = scale == 1 and outputs == 2 * inputs
        self.position = nn.Parameter(0.1 * torch.randn(1, width, *size))
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        with torch.no_grad():
            self.last.weight *= 0.1

    def forward(self, z: Tensor) -> Tensor:
        raw = self.last(nn.functional.silu(self.blocks(self.first(z) + self.position)))
        if self.adds_input:
            raw = raw + torch.cat([0.95 * z, torch.full_like(z, -1.0)], 1)
        return raw


class Head(LadderModule):
    """The module that predicts the data, with ``outputs`` numbers per dimension of x."""

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        outputs: int,
        width: int,
        blocks: int,
        scale: float,
    ):
        super().__init__(inputs, shape[0] * outputs, shape[1:], width, blocks, scale)
        self.shape, self.outputs = shape, outputs
        # The output predicts the data, not the mean and deviation of a latent. So the input is
        # never added, even if there are twice as many output as input channels.
        self.adds_input = False

    def forward(self, z: Tensor) -> Tensor:
        return per_dim(super().forward(z), self.outputs, self.shape)


class ConvLadder(Ladder):
    """A ladder of convolutional levels; the first ``halvings`` levels halve height and width.

    Args:
        shape, outputs: from the data and the model.
        levels: number L of latents.
        channels: channels of each latent.
        width, blocks: channels and residual blocks of each of the 2 L modules.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        levels: Count = 1,
        channels: Count = 8,
        halvings: Whole = 1,
        width: Count = 32,
        blocks: Whole = 1,
    ):
        super().__init__()
        depth, height, columns = image_shape(shape, "conv_ladder", "model=vae_mlp")
        sizes = [
            (height >> min(k, halvings), columns >> min(k, halvings)) for k in range(levels + 1)
        ]
        # The decoder from level k + 1 to level k enlarges images by scales[k].
        scales = [2.0 if k < halvings else 1.0 for k in range(levels)]
        self.encoders = nn.ModuleList(
            LadderModule(
                channels if k else depth, 2 * channels, sizes[k + 1], width, blocks, 1 / scales[k]
            )
            for k in range(levels)
        )
        self.decoders = nn.ModuleList(
            LadderModule(channels, 2 * channels, sizes[k], width, blocks, scales[k])
            for k in range(1, levels)
        )
        self.head = Head(channels, (depth, height, columns), outputs, width, blocks, scales[0])
        self.top = (channels, *sizes[-1])
