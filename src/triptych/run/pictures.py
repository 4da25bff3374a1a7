"""Draw pictures of samples: image grids, scatter plots, rows per caption, sampling trajectories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.data.base import DataModule
from triptych.data.batch import to_level
from triptych.data.captions import Captioned
from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import chunk_size
from triptych.run.directory import atomic
from triptych.run.drawing import Drawing, select_rows

# In the picture of prompts: captions of trained classes, of other classes, samples per caption.
TRAINED, UNTRAINED, COLUMNS = 4, 2, 8
FRAMES = 9  # maximum number of noise levels in the picture of a trajectory
GREY = 96  # grey level of the lines between images, and of empty cells


def save_picture(x: Tensor, data: DataModule, path: Path) -> None:
    """Save a PNG of samples x (n, *shape): a grid of images, or a scatter plot over the data."""
    with atomic(path) as file:
        if len(data.shape) == 3:
            columns = max(1, round(len(x) ** 0.5))
            filled = pad(to_grey_levels(x, data), (0,) * 7 + (-len(x) % columns,), value=GREY)
            tile_images(filled.unflatten(0, (-1, columns))).save(file, "PNG")
        else:
            _plot_points(x, data).savefig(file, dpi=120)


def save_real_images(data: DataModule, n: int, path: Path) -> None:
    """Save a picture of n real images, evenly spaced in the ``shown`` split.

    They are spaced because items may be sorted by class.
    """
    if len(data.shape) == 3:
        split = data.splits[data.shown]
        n = min(n, len(split))
        items = torch.arange(n) * len(split) // n
        save_picture(split.batch(items).x, data, path)


def save_prompts(drawing: Drawing, path: Path) -> Path | None:
    """Save a picture of samples for a few held-out captions, one row per caption.

    Return None, without a file, if samples are not drawn from captions.
    """
    data = drawing.data
    if not isinstance(data, Captioned) or not _draws_captioned_images(drawing):
        return None
    rows, marks = _caption_rows(data)
    items = torch.tensor(rows).repeat_interleave(COLUMNS)
    x = drawing.samples(len(items), seed=0, items=items).unflatten(0, (len(rows), COLUMNS))
    strips = (
        pad(to_grey_levels(x, data), (0, 1, 0, 0), value=255).permute(0, 3, 1, 4, 2).flatten(2, 3)
    )
    figure = new_figure(COLUMNS * 0.62, len(marks) * 0.88)
    for ax, strip, mark in zip(
        figure.subplots(len(marks), squeeze=False)[:, 0], strips, marks, strict=True
    ):
        picture = strip.numpy()
        ax.imshow(
            picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255
        )
        ax.set_title(mark, fontsize=8, loc="left", pad=2)
        ax.set_axis_off()
    with atomic(path) as file:
        figure.savefig(file, dpi=150)
    return path


def _draws_captioned_images(drawing: Drawing) -> bool:
    """Return whether the samples are images conditioned on captions."""
    return len(drawing.data.shape) == 3 and drawing.conditional and not drawing.class_conditional


def save_trajectory(
    drawing: Drawing, condition: Condition | None, n: int, seed: int, folder: Path
) -> Path:
    """Save ``trajectory.png``: how the first 16 images (or 1000 points) of n evolve from noise."""
    model, images = drawing.model, len(drawing.data.shape) == 3
    generator = drawing.generator(seed)
    training = model.training
    model.eval()
    condition = drawing.complete_condition(select_rows(condition, slice(n)), n, generator)
    if drawing.prepare is not None and condition is not None:
        condition = drawing.prepare(condition, generator)
    x, gammas = sample_trajectory(
        drawing, condition, n, generator, max_shown=16 if images else 1000
    )
    x = model.to_picture(x)
    model.train(training)
    path = folder / "trajectory.png"
    if images:
        save_image_sequence(x, path)
    else:
        with atomic(path) as file:
            _plot_trajectory(x, gammas).savefig(file)
    return path


@torch.no_grad()
def sample_trajectory(
    drawing: Drawing,
    condition: Condition | None,
    n: int,
    generator: torch.Generator,
    max_shown: int,
) -> tuple[Tensor, Tensor]:
    """Draw samples, and return them at F <= ``FRAMES`` steps from noise to data.

    Return (x (F, m, *event), gamma (F,)). The steps are evenly spaced. x is z / sqrt(alpha^2 +
    sigma^2), which has the scale of the data for every noise process; the last frame is the final
    sample. n samples are drawn exactly as the sampler draws them, and the first m = min(n,
    ``max_shown``) are returned. If the sampler draws several candidates for each sample, the first
    candidate is returned.
    """
    model = drawing.model
    sampler = model.adapt_sampler(drawing.sampler)
    gammas = sampler.gammas(model.schedule, generator.device)
    steps = len(gammas) - 1 + model.schedule.denoised
    moments = torch.linspace(0, steps, min(FRAMES, steps + 1)).round().long()
    chunks = torch.arange(n).split(sampler.chunk or chunk_size(model.event, generator.device))
    shown = [chunk for chunk in chunks if chunk[0] < max_shown]
    x = _draw_frames(drawing, sampler, gammas, moments, condition, n, shown, generator)
    return x[:, :max_shown].cpu(), gammas[moments.clamp(max=len(gammas) - 1)].cpu()


def _draw_frames(
    drawing: Drawing,
    sampler: Any,
    gammas: Tensor,
    frame_steps: Tensor,
    condition: Condition | None,
    n: int,
    chunks: Sequence[Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Draw the samples whose indices are in ``chunks``, and return them at ``frame_steps``.

    The result is (F, m, *event), for F steps and m of the n samples.
    """
    model = drawing.model
    denoiser: Any = drawing.denoiser or model.denoiser
    denoised = model.schedule.denoised
    alpha, sigma = denoiser.process.alpha_sigma(gammas)
    scale = torch.hypot(alpha, sigma)
    if not denoised:
        scale[-1] = alpha[-1]  # Without a final denoising, the last z is alpha times the sample.
    start = torch.randn((n, *model.event), generator=generator, device=generator.device)
    start *= denoiser.process.prior_std(gammas[0])
    rows = []
    for chunk in chunks:
        part = select_rows(condition, chunk)
        z = start[chunk]
        frames = [z / scale[0]]
        for i, z in enumerate(sampler.path(denoiser, gammas, z, part, generator), start=1):  # noqa: B020
            if i in frame_steps:
                frames.append(z / scale[i])
        if denoised:
            frames.append(denoiser(z, gammas[-1], part).x0)
        rows.append(torch.stack(frames))
    return torch.cat(rows, 1)


def save_image_sequence(x: Tensor, path: Path) -> None:
    """Save a PNG of images x (F, B, C, H, W) in [-1, 1], one row per sample, with noise at left."""
    with atomic(path) as file:
        tile_images(((x.transpose(0, 1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)).save(
            file, "PNG"
        )


def log_picture(loggers: Any, key: str, path: Path, step: int) -> None:
    """Send a picture to every logger that has ``log_picture``."""
    for logger in loggers:
        if hasattr(logger, "log_picture"):
            logger.log_picture(key, path, step)


def to_grey_levels(x: Tensor, data: DataModule) -> Tensor:
    """Convert images in data units to grey levels 0..255 (uint8)."""
    levels = data.levels or 256
    return (to_level(x, levels).float() * (255 / (levels - 1))).round().to(torch.uint8)


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of this size in inches, without a display or pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tile_images(pixels: Tensor) -> Any:
    """Tile images (rows, columns, C, H, W), uint8, into one picture, separated by grey lines."""
    from PIL import Image

    pixels = pad(pixels, (0, 1, 0, 1), value=GREY).permute(0, 3, 1, 4, 2)
    rows, height, columns, width, channels = pixels.shape
    array = pixels.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(array.squeeze(2).numpy() if channels == 1 else array.numpy())
    # Enlarge small pictures without smoothing, so that viewers show the exact pixels.
    factor = max(1, 384 // max(picture.size))
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def _caption_rows(data: Captioned) -> tuple[list[int], list[str]]:
    """Choose items with different captions for the rows of a picture.

    Return their indices and the titles of the rows. Captions of classes that were trained on come
    first, then those excluded from training.
    """
    captions, labels = data.captions[data.condition_split], data.splits[data.condition_split].labels
    untrained = torch.zeros(len(captions), dtype=torch.bool)
    if labels is not None:
        untrained = data.is_left_out_of_training(labels)
    trained = _first_item_per_caption(captions, ~untrained, TRAINED)
    others = _first_item_per_caption(captions, untrained, UNTRAINED)
    marks = [captions[item] for item in trained]
    marks += [f"{captions[item]} (excluded from training)" for item in others]
    return trained + others, marks


def _first_item_per_caption(captions: list[str], is_suitable: Tensor, max_items: int) -> list[int]:
    """Return the first suitable item of each caption; of at most ``max_items`` captions."""
    first: dict[str, int] = {}
    for item in is_suitable.nonzero().squeeze(1).tolist():
        first.setdefault(captions[item], item)
    return [*first.values()][:: max(1, len(first) // max_items)][:max_items]


def _plot_points(x: Tensor, data: DataModule) -> Any:
    """Plot points x (n, d) over the data: a scatter plot, or histograms if d = 1."""
    split = data.splits[data.shown]
    truth = split.batch(torch.arange(len(split))).x
    figure = new_figure(4, 4)
    axes = figure.subplots()
    if data.shape[0] == 1:
        bins = torch.linspace(truth.min(), truth.max(), 60).tolist()
        axes.hist(truth[:, 0].numpy(), bins=bins, density=True, color="0.8", label="data")
        axes.hist(
            x[:, 0].numpy(), bins=bins, density=True, histtype="step", color="C0", label="samples"
        )
    else:
        axes.scatter(truth[:2000, 0], truth[:2000, 1], s=3, color="0.8", label="data", linewidths=0)
        axes.scatter(x[:, 0], x[:, 1], s=3, color="C0", label="samples", linewidths=0)
        axes.set_aspect("equal")
    axes.legend(frameon=False, loc="upper right", markerscale=3)
    return figure


def _plot_trajectory(x: Tensor, gammas: Tensor) -> Any:
    """Plot points x (F, B, d) at noise levels gammas (F,), one panel each; histograms if d = 1.

    All panels have one scale, which stands below the first and holds every point.
    """
    size = max(x.abs().max().item(), 1e-3) * 1.05
    figure = new_figure(1.3 * len(x), 1.5)
    panels = figure.subplots(1, len(x), squeeze=False)[0]
    for axes, points, gamma in zip(panels, x, gammas.tolist(), strict=True):
        if points.shape[1] == 1:
            axes.hist(
                points[:, 0].numpy(), bins=torch.linspace(-size, size, 50).tolist(), color="C0"
            )
        else:
            axes.scatter(points[:, 0], points[:, 1], s=2, color="C0", linewidths=0)
            axes.set_ylim(-size, size)
            axes.set_aspect("equal")
        axes.set_xlim(-size, size)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"gamma {gamma:.1f}", fontsize=8)
    panels[0].set_xlabel(f"\N{MINUS SIGN}{size:.2g} to {size:.2g}", fontsize=7)
    return figure
