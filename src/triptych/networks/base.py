"""The base classes of networks, checks of their arguments, and layers that several networks use."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from triptych.declare import Role, declared
from triptych.diffusion.condition import Condition, Images, Kind
from triptych.networks.conditioning import ConditionImages, Conditioning


@declared("denoiser.network")
class Network(nn.Module, ABC):
    """Base class of networks, with the arguments that all of them share.

    They are described in ``triptych.networks``. A subclass adds arguments for its own sizes.
    """

    shape: tuple[int, ...]

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int = 1,
        conditions: Mapping[str, Kind] | None = None,
        spacing: float | None = None,
    ):
        super().__init__()
        self.shape, self.outputs, self.conditions = tuple(shape), outputs, dict(conditions or {})
        self.spacing = spacing

    @abstractmethod
    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        """Return raw (B, *shape), or (B, outputs, *shape), for z (B, *shape) and gamma (B,)."""

    def per_dim(self, raw: Tensor) -> Tensor:
        return per_dim(raw, self.outputs, self.shape)


class ImageNetwork(Network):
    """Base class of networks for images, whose first layer reads ``features``.

    Features are the channels of z, of its Fourier features and of the condition's images.

    Args:
        checkpointing: gradient checkpointing (Chen et al. 2016): training keeps only the inputs of
            blocks and computes each block a second time in the backward pass. It needs less memory,
            a third more operations, and has the same losses and gradients. A subclass calls its
            blocks by ``run_block``.
    """

    shape: tuple[int, int, int]

    def __init__(
        self,
        shape: tuple[int, ...],
        checkpointing: Annotated[bool, Role.MACHINE] = False,
        **contract: Any,
    ):
        super().__init__(image_shape(shape, type(self).__name__.lower()), **contract)
        self.checkpointing = checkpointing

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Return block(*inputs); with ``checkpointing``, activations inside it are not stored."""
        if self.checkpointing and self.training:
            # The state of the random numbers is restored, so dropout is the same both times.
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]  # torch's
        return block(*inputs)  # type: ignore[no-any-return]  # a block's own

    def read(self, conditioning: int, fourier: Sequence[float], waves: int = 16) -> None:
        """Build the layers that read the inputs. A subclass calls it first in ``__init__``.

        ``conditioning``: width of the embedding of gamma, by ``waves`` sines, and of all parts of
        the condition but images. ``fourier``: periods of ``LevelWaves``, in units of the level
        spacing.
        """
        vectors = {
            name: kind for name, kind in self.conditions.items() if not isinstance(kind, Images)
        }
        self.conditioning = Conditioning(conditioning, vectors, waves)
        self.images = ConditionImages(self.conditions)
        self.waves = LevelWaves(list(fourier), self.spacing)
        # Number of channels that ``features`` returns.
        self.channels = self.shape[0] * self.waves.factor + self.images.channels

    def features(self, z: Tensor, condition: Condition | None) -> Tensor:
        """Join z (B, C, H, W), its sines and the condition's images to (B, channels, H, W)."""
        return torch.cat([self.waves(z), *self.images(z, condition)], 1)


class LevelWaves(nn.Module):
    """Fourier features of z that fit the data's grid of levels (VDM, app. C).

    z (B, C, ...) -> (B, C (1 + 2 len(periods)), ...): z, then sin and cos of 2 pi z / (period *
    spacing). The frequencies follow from the level spacing: VDM's n = 7, 8 are the periods 2 and 1
    for 256 levels; for 17 levels the same periods are n = 3, 4.
    """

    def __init__(self, periods: list[float], spacing: float | None):
        super().__init__()
        if periods and spacing is None:
            raise ValueError(
                f"denoiser.network.fourier={periods}: the data have no discrete levels; set []"
            )
        self.frequencies = [2 * math.pi / (p * (spacing or 1)) for p in periods]

    @property
    def factor(self) -> int:
        return 1 + 2 * len(self.frequencies)

    def forward(self, z: Tensor) -> Tensor:
        waves = [z]
        for frequency in self.frequencies:
            waves += [torch.sin(frequency * z), torch.cos(frequency * z)]
        return torch.cat(waves, 1)


def check_heads(channels: int, heads: int, place: str = "denoiser.network") -> None:
    """Raise ValueError unless the number of attention heads divides ``channels``."""
    if channels % heads:
        raise ValueError(f"{place}.heads={heads}: must divide the number of channels, {channels}")


def check_head_width(channels: int, head_width: int) -> None:
    """Raise ValueError unless ``channels`` divide into heads of ``head_width``."""
    if channels % head_width:
        raise ValueError(
            f"denoiser.network.head_width={head_width}: must divide the number of channels, "
            f"{channels}"
        )


def check_halves(shape: tuple[int, int, int], widths: Sequence[int], key: str = "widths") -> None:
    """Raise ValueError unless images can be halved once for each further width of a U-Net.

    ``key``: name of the argument ``widths`` in the configuration.
    """
    _, height, width = shape
    halvings = len(widths) - 1
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"denoiser.network.{key}={list(widths)}: {height}x{width} images cannot be halved "
            f"{halvings} times; set fewer widths"
        )


class ImageAttention(nn.Module):
    """Self-attention over the positions of an image (B, C, H, W), with a residual connection.

    The output is (h + out) ``skip_scale``.
    """

    def __init__(self, width: int, heads: int = 1, groups: int = 8, skip_scale: float = 1.0):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.skip_scale = heads, skip_scale
        self.norm = group_norm(width, groups)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zeros(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        b, channels, height, width = h.shape
        qkv = self.qkv(self.norm(h)).view(b, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        h = h + self.out(mixed.reshape(b, channels, height, width))
        if self.skip_scale != 1:
            h = h * self.skip_scale
        return h


def per_dim(raw: Tensor, outputs: int, shape: tuple[int, ...]) -> Tensor:
    """Reshape raw (B, outputs * shape[0], ...), or flat, to (B, *shape) or (B, outputs, *shape).

    The second shape is for more than one output per dimension.
    """
    if raw.ndim == 2:
        raw = raw.view(len(raw), outputs * shape[0], *shape[1:])
    if outputs == 1:
        return raw
    return raw.unflatten(1, (outputs, shape[0]))


def transformer(width: int, depth: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    """Return a pre-norm transformer over tokens (B, N, width)."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def zeros(layer: nn.Module) -> nn.Module:
    """Set all parameters of the layer to zero, so that it has no effect at first; return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(width: int, groups: int = 8) -> nn.GroupNorm:
    """Return a group norm with gcd(``groups``, ``width``) groups."""
    return nn.GroupNorm(math.gcd(groups, width), width)


def image_shape(
    shape: tuple[int, ...], name: str, fix: str = "denoiser=mlp"
) -> tuple[int, int, int]:
    """Return the shape as (C, H, W); raise ValueError if it is not that of images."""
    if len(shape) != 3:
        raise ValueError(f"{name} needs images (C, H, W), but items are {tuple(shape)}; use {fix}")
    return shape  # type: ignore[return-value]  # mypy: the tuple has three numbers
