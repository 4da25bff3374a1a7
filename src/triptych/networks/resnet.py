"""A residual network at one resolution, after VDM (Kingma et al. 2021, appendix B).

The input features, among them ``LevelWaves`` of z, are also fed to the last convolution, scaled but
not mixed. Before that convolution each channel has a gain exp(a(gamma)), because a score grows with
1 / sigma. a(gamma) and the last convolution start at 0 and are built last, so the other initial
weights are the same for any ``outputs``, if ``members=1``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from triptych.declare import Count, Positive, Share
from triptych.diffusion.condition import MEMBER, Condition
from triptych.networks.base import ImageAttention, ImageNetwork, group_norm, zeros


class ImageBlock(nn.Module):
    """A residual block: norm, silu, conv, modulated norm, silu, channel dropout, conv.

    The second norm is modulated by the conditioning.
    """

    def __init__(self, width: int, conditioning: int, dropout: float):
        super().__init__()
        self.first_norm, self.second_norm = group_norm(width), group_norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = zeros(nn.Conv2d(width, width, 3, padding=1))
        self.modulation = zeros(nn.Linear(conditioning, 2 * width))
        # Drop whole channels, because dropout of elements takes a quarter of a step on a CPU.
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(silu(self.first_norm(h)))
        inner = torch.addcmul(shift, self.second_norm(inner), 1 + scale)
        return h + self.second(self.dropout(silu(inner)))


class ResNet(ImageNetwork):
    """A residual network for images at one resolution.

    Arguments that all networks share are described in ``triptych.networks``, ``fourier`` in
    ``ImageNetwork.read``.

    Args:
        width, blocks: channels and residual blocks.
        attention: whether there is one attention layer in the middle.
        dropout: share of a block's channels that is dropped in training.
        conditioning: width of the embedding of gamma and condition.
        members: number of networks of these sizes, each with its own weights; the prediction is
            their mean. In training each member reads its own share of a batch, so a step costs as
            much as for one network.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: Count = 32,
        blocks: Count = 4,
        attention: bool = False,
        dropout: Share = 0.0,
        fourier: Sequence[Positive] = (4, 2, 1),
        conditioning: Count = 64,
        members: Count = 1,
        **contract: Any,
    ):
        super().__init__(shape, **contract)
        self.read(conditioning, fourier)
        self.first = nn.Conv2d(self.channels, width, 3, padding=1)
        self.position = nn.Parameter(0.1 * torch.randn(1, width, *self.shape[1:]))
        layers: list[nn.Module] = [ImageBlock(width, conditioning, dropout) for _ in range(blocks)]
        if attention:
            layers.insert(blocks // 2, ImageAttention(width))
        self.layers = nn.ModuleList(layers)
        self.last_norm = group_norm(width)
        self.gains = zeros(nn.Linear(conditioning, width + self.channels))
        outputs = self.shape[0] * self.outputs
        self.last = zeros(nn.Conv2d(width + self.channels, outputs, 3, padding=1))
        sizes = (width, blocks, attention, dropout, fourier, conditioning)
        self.others = nn.ModuleList(ResNet(shape, *sizes, **contract) for _ in range(members - 1))
        self.training_shares = members

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        if not self.others:
            return self.forward_member(z, gamma, condition)
        if condition is not None and MEMBER in condition.parts:
            return self._forward_ensemble(z, gamma, condition)
        raw = [member(z, gamma, condition) for member in (self.forward_member, *self.others)]
        return torch.stack(raw).mean(0)

    def _forward_ensemble(self, z: Tensor, gamma: Tensor, condition: Condition) -> Tensor:
        """Predict each item by the one member that the condition assigns to it."""
        assigned, rest = condition.parts[MEMBER].value, condition.without(MEMBER)
        raw, shares = [], []
        # Members are assigned on the CPU, so that the sizes of shares are known without waiting for
        # the device. On Apple's devices an asynchronous copy may be read before it has ended.
        asynchronous = z.device.type != "mps"
        for number, member in enumerate((self.forward_member, *self.others)):
            # A process may have no item of a member. The member then reads an empty batch, so that
            # each weight has a gradient on each process.
            share = (
                (assigned == number).nonzero().squeeze(1).to(z.device, non_blocking=asynchronous)
            )
            part = None if rest is None else rest[share]
            raw.append(member(z[share], gamma[share], part))
            shares.append(share)
        return torch.cat(raw)[torch.cat(shares).argsort()]

    def forward_member(
        self, z: Tensor, gamma: Tensor, condition: Condition | None = None
    ) -> Tensor:
        c = self.conditioning(gamma, condition)
        x = self.features(z, condition)
        # channels_last is faster for convolutions on a CPU
        x = x.contiguous(memory_format=torch.channels_last)
        h = self.first(x) + self.position
        for layer in self.layers:
            h = self.run_block(layer, h, c)
        h = torch.cat([silu(self.last_norm(h)), x], dim=1)
        return self.per_dim(self.last(h * self.gains(c)[:, :, None, None].exp()))
