"""Samples as a picture: a grid of images, or points over the data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.data.base import DataModule
from triptych.data.batch import to_level
from triptych.run.directory import atomic


def save_picture(x: Tensor, data: DataModule, path: Path) -> None:
    """Save a PNG of samples x (n, *shape): a grid of images, or points over the data."""
    with atomic(path) as file:
        if len(data.shape) == 3:
            _grid(x, data).save(file, "PNG")
        else:
            _points(x, data).savefig(file, dpi=120)


def save_real(data: DataModule, n: int, path: Path) -> None:
    """Save a grid of n test images; none of points, whose pictures all have the data.

    They are spread evenly over the set: a folder's first images are all of one class.
    """
    if len(data.shape) == 3:
        test = data.splits["test"]
        some = torch.arange(n := min(n, len(test))) * len(test) // n
        save_picture(test.batch(some).x, data, path)


def log_picture(loggers: Any, key: str, path: Path, step: int) -> None:
    """Send a picture to every logger that takes pictures."""
    for logger in loggers:
        if hasattr(logger, "log_picture"):
            logger.log_picture(key, path, step)


def shades(x: Tensor, data: DataModule) -> Tensor:
    """Convert images in data units to bytes."""
    levels = data.levels or 256
    return (to_level(x, levels).float() * (255 / (levels - 1))).round().to(torch.uint8)


def new_figure(width: float, height: float) -> Any:
    """Return a figure of matplotlib's, in inches, that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _grid(x: Tensor, data: DataModule) -> Any:
    return tiled(in_rows(shades(x, data), max(1, round(len(x) ** 0.5))))


def in_rows(x: Tensor, columns: int, blank: float = 0.0) -> Tensor:
    """Arrange images (n, C, H, W) as (rows, columns, C, H, W), the last row filled up with ``blank``."""
    return pad(x, (0,) * 7 + (-len(x) % columns,), value=blank).unflatten(0, (-1, columns))


def tiled(pixels: Tensor) -> Any:
    """Tile images (rows, columns, C, H, W), uint8, into one picture, with grey lines between."""
    from PIL import Image

    pixels = pad(pixels, (0, 1, 0, 1), value=96).permute(0, 3, 1, 4, 2)
    rows, height, columns, width, channels = pixels.shape
    array = pixels.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(array.squeeze(2).numpy() if channels == 1 else array.numpy())
    # small images are enlarged without smoothing, so that a viewer shows the pixels that were drawn
    factor = max(1, 384 // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _points(x: Tensor, data: DataModule) -> Any:
    test = data.splits["test"]
    truth = test.batch(torch.arange(len(test))).x
    figure = new_figure(4, 4)
    axes = figure.subplots()
    if data.shape[0] == 1:
        bins = torch.linspace(truth.min(), truth.max(), 60).tolist()
        axes.hist(truth[:, 0].numpy(), bins=bins, density=True, color="0.8", label="data")
        axes.hist(x[:, 0].numpy(), bins=bins, density=True, histtype="step", color="C0", label="samples")
    else:
        axes.scatter(truth[:2000, 0], truth[:2000, 1], s=3, color="0.8", label="data", linewidths=0)
        axes.scatter(x[:, 0], x[:, 1], s=3, color="C0", label="samples", linewidths=0)
        axes.set_aspect("equal")
    axes.legend(frameon=False, loc="upper right")
    return figure
