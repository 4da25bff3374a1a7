"""What networks share beside their conditioning: an image's own grid of levels as waves, shapes."""

import math

import torch
from torch import Tensor, nn


class LevelWaves(nn.Module):
    """Fourier features that fit the data's grid (VDM app. C, with frequencies from the level spacing).

    z (B, C, ...) -> (B, C (1 + 2 len(periods)), ...): z, then sin and cos of 2 pi z / (period * spacing).
    VDM's n = 7, 8 are periods 2 and 1 of 256 levels; for 17 levels the same grid asks for n = 3, 4.

    Raises:
        ValueError: periods are given for data without levels.
    """

    def __init__(self, periods: list[float], spacing: float | None):
        super().__init__()
        if periods and spacing is None:
            raise ValueError(f"denoiser.network.fourier={periods}: this data has no levels; [] is accepted")
        self.frequencies = [2 * math.pi / (p * (spacing or 1)) for p in periods]

    @property
    def factor(self) -> int:
        """Output channels per input channel."""
        return 1 + 2 * len(self.frequencies)

    def forward(self, z: Tensor) -> Tensor:
        waves = [f(w * z) for w in self.frequencies for f in (torch.sin, torch.cos)]
        return torch.cat([z, *waves], 1) if waves else z


def per_dim(raw: Tensor, outputs: int, shape: tuple[int, ...]) -> Tensor:
    """(B, outputs * shape[0], ...) -> (B, *shape) for one output per dimension, else (B, outputs, *shape)."""
    return raw if outputs == 1 else raw.unflatten(1, (outputs, shape[0]))


def zeros(layer: nn.Module) -> nn.Module:
    """The layer with all parameters zero: it says nothing until it has learnt to."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def image_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """(C, H, W), or ValueError: this network is for images."""
    if len(shape) != 3:
        raise ValueError(
            f"denoiser={name}: for images (C, H, W), this data has shape {tuple(shape)}; mlp is accepted"
        )
    return shape  # type: ignore[return-value]
