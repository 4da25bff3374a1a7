"""What every network shares: gamma and label as one vector, an image's own grid of levels as waves."""

import math

import torch
from torch import Tensor, nn


class Conditioning(nn.Module):
    """gamma (B,) and an optional label (B,) -> (B, width).

    gamma itself is seen through sines of periods 30 to 1, so the embedding knows nothing of a schedule's
    endpoints and a trained network can be used under any other schedule. Labels have one entry more than
    there are classes: "no label".
    """

    frequency: Tensor

    def __init__(self, width: int, num_classes: int = 0, waves: int = 16):
        super().__init__()
        frequency = torch.exp(torch.linspace(math.log(2 * math.pi / 30), math.log(2 * math.pi), waves))
        self.register_buffer("frequency", frequency, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, gamma: Tensor, condition: Tensor | None = None) -> Tensor:
        angle = gamma.unsqueeze(1) * self.frequency
        h = self.layers(torch.cat([angle.sin(), angle.cos()], 1))
        if self.label is not None:
            if condition is None:
                condition = torch.full_like(gamma, self.label.num_embeddings - 1, dtype=torch.long)
            h = h + self.label(condition)
        return nn.functional.silu(h)


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
