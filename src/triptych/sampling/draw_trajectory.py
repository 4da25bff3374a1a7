"""The way from noise to a few samples, for ``triptych-sample trajectory=strip|gif``."""

from pathlib import Path

import torch

from triptych.sampling.draw import asked_for
from triptych.sampling.trajectory import save_gif, save_points, save_strip, trajectory

FRAMES = {"strip": 9, "gif": 40}


def save_trajectory(
    kind: str, opened, sampler, guided, label: int | None, seed: int, n: int, folder: Path
) -> Path:
    """``trajectory.png`` (strip) or ``trajectory.gif`` of the first ``n`` samples, in ``folder``.

    Args:
        opened: what ``reopen`` gave: model and data.
        guided: the denoiser to follow; None: the model's own.
    """
    model, data = opened.model, opened.data
    x, gammas = trajectory(
        guided or model.denoiser,
        model.prepared(sampler),
        model.schedule,
        (n, *data.shape),
        generator=torch.Generator(model.device).manual_seed(seed),
        condition=asked_for(model, data, n, label, guided),
        device=model.device,
        frames=FRAMES[kind],
    )
    path = folder / f"trajectory.{'gif' if kind == 'gif' else 'png'}"
    if len(data.shape) != 3:
        save_points(x, gammas, path)
    elif kind == "gif":
        save_gif(x, path)
    else:
        save_strip(x, path)
    return path
