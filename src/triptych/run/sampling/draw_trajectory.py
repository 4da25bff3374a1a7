"""The way from noise to a few samples, for ``triptych-sample trajectory=strip|gif``."""

from pathlib import Path
from typing import Any

import torch

from triptych.run.experiment import Drawing, Experiment
from triptych.run.sampling.draw import sample_conditions
from triptych.run.sampling.opened import prompts
from triptych.run.sampling.trajectory import save_gif, save_points, save_strip, trajectory
from triptych.run.source import filled

FRAMES = {"strip": 9, "gif": 40}


def save_trajectory(opened: Experiment, drawing: Drawing, values: dict[str, Any], folder: Path) -> Path:
    """``trajectory.png`` (strip) or ``trajectory.gif`` of the first ``values["n"]`` samples."""
    model: Any = opened.model  # one with a denoiser: ``drawing_of`` has asked
    data, kind = opened.data, values["trajectory"]
    n = min(values["n"], 16 if len(data.shape) == 3 else 1000)
    wanted = prompts(opened, values, n)
    wanted = None if wanted is None else wanted.to(model.device)
    wanted = (
        sample_conditions(model, data, n, values["label"], drawing.denoiser) if wanted is None else wanted
    )
    generator = torch.Generator(model.device).manual_seed(values["seed"])
    training = model.training
    model.eval()
    x, gammas = trajectory(
        drawing.denoiser or model.denoiser,
        model.prepared(drawing.sampler),
        model.schedule,
        (n, *model.event),
        generator=generator,
        condition=filled(wanted, drawing.sources, n, generator),
        device=model.device,
        frames=FRAMES[kind],
    )
    x = model.shown(x)
    model.train(training)
    path = folder / f"trajectory.{'gif' if kind == 'gif' else 'png'}"
    if len(data.shape) != 3:
        save_points(x, gammas, path)
    elif kind == "gif":
        save_gif(x, path)
    else:
        save_strip(x, path)
    return path
