"""A denoising trajectory as a picture: the same samples at several moments of one descent."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.schedule import Schedule
from triptych.run.directory import atomic
from triptych.run.drawing import Drawing
from triptych.run.sampling.pictures import in_rows, new_figure, tiled

FRAMES = {"strip": 9, "gif": 40}


def save_trajectory(
    drawing: Drawing, condition: Condition | None, n: int, seed: int, folder: Path, kind: str = "strip"
) -> Path:
    """Save n samples as ``trajectory.png`` (strip) or ``trajectory.gif``, up to 16 images or 1000 points."""
    model, images = drawing.model, len(drawing.data.shape) == 3
    n = min(n, 16 if images else 1000)
    generator = drawing.generator(seed)
    training = model.training
    model.eval()
    x, gammas = trajectory(
        drawing.denoiser or model.denoiser,
        model.prepared(drawing.sampler),
        model.schedule,
        (n, *model.event),
        generator=generator,
        condition=drawing.fill(None if condition is None else condition[slice(n)], n, generator),
        device=model.device,
        frames=FRAMES[kind],
    )
    x = model.shown(x)
    model.train(training)
    path = folder / f"trajectory.{'gif' if kind == 'gif' else 'png'}"
    if not images:
        save_points(x, gammas, path)
    elif kind == "gif":
        save_gif(x, path)
    else:
        save_strip(x, path)
    return path


@torch.no_grad()
def trajectory(
    denoiser: Any,
    sampler: Sampler,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
    device: torch.device | str = "cpu",
    frames: int = 9,
) -> tuple[Tensor, Tensor]:
    """Return (x (F, B, *event), gamma (F,)) at ``frames`` moments, evenly spaced from first step to last.

    x is z / sqrt(alpha^2 + sigma^2), of the data's order of size under every process; z / alpha at the end.
    """
    gammas = sampler.gammas(schedule, device)
    alpha, sigma = denoiser.process.alpha_sigma(gammas)
    z = torch.randn(shape, generator=generator, device=device) * denoiser.process.prior_std(gammas[0])
    moments = torch.linspace(0, len(gammas) - 1, min(frames, len(gammas))).round().long().tolist()
    scale = torch.hypot(alpha, sigma)
    scale[-1] = alpha[-1]
    frames_of = [z / scale[0]]
    for i, z_s in enumerate(sampler.path(denoiser, gammas, z, condition, generator), start=1):
        if i in moments:
            frames_of.append(z_s / scale[i])
    return torch.stack(frames_of).cpu(), gammas[moments].cpu()


def save_strip(x: Tensor, path: Path) -> None:
    """Save a PNG of images x (F, B, C, H, W) in [-1, 1]: a row a sample, a column a moment, noise at left."""
    with atomic(path) as file:
        _picture(x.transpose(0, 1)).save(file, "PNG")


def save_gif(x: Tensor, path: Path, columns: int = 8) -> None:
    """Save a GIF of images x (F, B, C, H, W) in [-1, 1], one frame a moment, that rests on the last one."""
    _animate([_picture(in_rows(frame, columns, -1.0)) for frame in x], path)


def _animate(frames: list[Any], path: Path, milliseconds: int = 120) -> None:
    durations = [milliseconds] * (len(frames) - 1) + [10 * milliseconds]
    with atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _picture(x: Tensor) -> Any:
    """Tile images (rows, columns, C, H, W) in [-1, 1] into one picture."""
    return tiled(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def save_points(x: Tensor, gammas: Tensor, path: Path) -> None:
    """Save points x (F, B, d) at their gammas (F,): a PNG with a panel, or a GIF with a frame, a moment."""
    from PIL import Image

    size = max(x.abs().quantile(0.99).item(), 1e-3) * 1.1
    frames = [_scatter(frame, gamma, size) for frame, gamma in zip(x, gammas.tolist(), strict=True)]
    if path.suffix == ".gif":
        _animate(frames, path)
        return
    strip = Image.new("RGB", (sum(f.width for f in frames), frames[0].height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * frame.width, 0))
    with atomic(path) as file:
        strip.save(file, "PNG")


def _scatter(x: Tensor, gamma: float, size: float) -> Any:
    """Draw points x (B, d): their first two coordinates, or a histogram of the only one."""
    from PIL import Image

    figure = new_figure(2, 2)
    canvas: Any = figure.canvas
    axes = figure.subplots()
    if x.shape[1] == 1:
        axes.hist(x[:, 0].numpy(), bins=torch.linspace(-size, size, 50).tolist(), color="C0")
    else:
        axes.scatter(x[:, 0], x[:, 1], s=2, color="C0", linewidths=0)
        axes.set_ylim(-size, size)
        axes.set_aspect("equal")
    axes.set_xlim(-size, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"gamma {gamma:.1f}", fontsize=8)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
