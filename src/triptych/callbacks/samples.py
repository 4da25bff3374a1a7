"""Samples while training: a picture in the run's directory and in W&B, always from the same noise."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.data.batch import to_level
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.wrappers import is_conditional


class SampleGrid(pl.Callback):
    """Draw ``n`` samples with the run's sampler after validation, at most ``pictures`` times in a run.

    Validation sees the averaged weights, and so do the samples.
    """

    def __init__(self, sampler: Sampler, data: DataModule, folder: Path, n: int = 16, pictures: int = 3):
        self.sampler, self.data, self.folder = sampler, data, folder
        self.n, self.pictures = n, pictures

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.n < 1 or self.pictures < 1 or not trainer.is_global_zero or trainer.sanity_checking:
            return
        every = max(1, trainer.max_steps // self.pictures)
        interval = int(trainer.val_check_interval or 1) // trainer.accumulate_grad_batches
        if trainer.global_step % every >= interval:
            return
        x = draw(module, self.sampler, self.data, self.n, seed=0)
        save(x, self.data, self.folder / f"step_{trainer.global_step:07d}.png")
        log_picture(
            trainer.loggers,
            "samples",
            self.folder / f"step_{trainer.global_step:07d}.png",
            trainer.global_step,
        )


def draw(
    module,
    sampler: Sampler,
    data: DataModule,
    n: int,
    seed: int,
    progress=iter,
    label: int | None = None,
    guided=None,
) -> Tensor:
    """n samples (n, *shape) in data units, by ``guided`` (a denoiser around the module's own) if given."""
    generator = torch.Generator(module.device).manual_seed(seed)
    condition = None
    if takes_labels(module, guided):
        condition = labels(n, data, label).to(module.device)
    training = module.training
    module.eval()
    around = {} if guided is None else {"denoiser": guided}
    x = module.sample(n, sampler, generator, condition, progress, **around)
    module.train(training)
    return x.cpu()


def takes_labels(module, guided=None) -> bool:
    """Whether samples are of classes: the network is told them, or a guide is."""
    return module.conditional or (guided is not None and is_conditional(guided))


def labels(n: int, data: DataModule, label: int | None = None) -> Tensor:
    """The class of each sample, (n,) int64: all in turn unless one is named."""
    return torch.arange(n) % data.num_classes if label is None else torch.full((n,), label)


def save(x: Tensor, data: DataModule, path: Path) -> None:
    """A PNG of samples x (n, *shape): a grid of images, or points over the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(data.shape) == 3:
        _grid(x, data).save(path)
    else:
        _points(x, data, path)


def _grid(x: Tensor, data: DataModule):
    from PIL import Image

    levels = data.levels or 256
    pixels = (to_level(x, levels).float() * (255 / (levels - 1))).round().to(torch.uint8)
    columns = max(1, round(len(x) ** 0.5))
    rows = -(-len(x) // columns)
    channels, height, width = data.shape
    grid = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    grid[: len(x)] = pixels
    grid = torch.nn.functional.pad(grid, (0, 1, 0, 1), value=96)
    grid = grid.view(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), channels)
    picture = Image.fromarray(grid.squeeze(-1).numpy() if channels == 1 else grid.numpy())
    # small images are enlarged without smoothing, so that a viewer shows the pixels that were drawn
    factor = max(1, 384 // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _points(x: Tensor, data: DataModule, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    truth = data.splits["test"].values
    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
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
    figure.savefig(path, dpi=120)


def log_picture(loggers, key: str, path: Path, step: int) -> None:
    """Send a picture to every logger that takes pictures."""
    for logger in loggers:
        if hasattr(logger, "log_picture"):
            logger.log_picture(key, path, step)
