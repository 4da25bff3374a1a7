"""Draw, measure and plot the samples of the checkpoint that a run leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from triptych.run.account import FinalCheckpoint, baselines
from triptych.run.build import build_drawings
from triptych.run.checkpoints import save_checkpoint
from triptych.run.directory import RunDirectory
from triptych.run.experiment import Experiment
from triptych.run.measure import draw_sets, measure_posterior_mean, measure_samples
from triptych.run.new_process import call_in_new_process
from triptych.run.pictures import save_picture, save_prompts, save_real, save_trajectory
from triptych.run.processes import rank
from triptych.run.trainer import build_trainer

STRIP = 4  # images whose path from noise is shown; all points fit into one picture


@dataclass(frozen=True)
class Drawn:
    """The results of sampling: entries of ``summary.json``, and pictures by their loggers' keys."""

    entries: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, float] = field(default_factory=dict)  # calls of the denoiser per sample
    pictures: dict[str, Path] = field(default_factory=dict)


def draw_final(
    checkpoint: FinalCheckpoint, strategy: Strategy, step: int, release: Callable[[], None]
) -> Drawn:
    """Draw and measure samples as configured; add the model's panels and artifacts.

    ``release`` is called once only the first process has something left to do. Diverged, in all
    processes: a sample of the model of ``step`` is not finite.
    """
    if checkpoint.in_new_processes:
        numbers = checkpoint.data.numbers
        drawn: Drawn = call_in_new_process(_draw_alone, checkpoint.path, numbers, step)
        return drawn
    return _draw(checkpoint, strategy, step, release)


def _draw_alone(path: Path, numbers: dict[str, Tensor], step: int) -> Drawn:
    checkpoint = FinalCheckpoint.open(path, numbers)
    strategy = build_trainer(checkpoint.config, None, []).strategy
    return _draw(checkpoint, strategy, step, lambda: None)


def _draw(checkpoint: FinalCheckpoint, strategy: Strategy, step: int, release: Callable[[], None]) -> Drawn:
    run = checkpoint.run
    experiment = build_drawings(checkpoint.config, checkpoint.data, checkpoint.model())
    model = experiment.model
    if rank() == 0:
        for name, artifact in model.artifacts().items():
            save_checkpoint(artifact, run / name)
    sets = draw_sets(experiment, run, strategy, step) if checkpoint.tested else []
    release()
    if rank() != 0:
        return Drawn()
    pictures = _draw_pictures(run, experiment, strategy.root_device)
    entries: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": None,
    }
    if "samples/final" in pictures:
        entries["samples"] = str(pictures["samples/final"].relative_to(run.path))
    if model.draws and checkpoint.tested:
        entries["baselines"] = baselines(checkpoint.data)
    entries |= measure_posterior_mean(experiment)
    if sets:
        entries |= measure_samples(experiment, sets, run)
    return Drawn(model.panels() | entries, _evaluations(experiment), pictures)


def _evaluations(experiment: Experiment) -> dict[str, float]:
    """Return {"evaluations": calls of the denoiser per sample}, or {}."""
    if experiment.drawing is None or experiment.model.denoiser is None:
        return {}
    return {"evaluations": float(experiment.drawing.sampler.calls_under(experiment.model.schedule))}


def _draw_pictures(run: RunDirectory, experiment: Experiment, device: torch.device) -> dict[str, Path]:
    """Save ``samples/final.pt`` and pictures of samples; return the pictures for the loggers."""
    drawing, n = experiment.drawing, experiment.config["samples"]["n"]
    if n < 1 or drawing is None:
        return {}
    experiment.model.to(device)  # Lightning has left it on the CPU.
    folder = run / "samples"
    pictures = {"samples/final": folder / "final.png"}
    x = drawing.samples(n, seed=0)
    save_picture(x, experiment.data, pictures["samples/final"])
    save_real(experiment.data, n, folder / "real.png")
    save_checkpoint({"x": x}, folder / "final.pt")
    prompts = save_prompts(drawing, folder / "prompts.png")
    if prompts is not None:
        pictures["samples/prompts"] = prompts
    if experiment.model.denoiser is not None:
        shown = min(n, STRIP) if len(experiment.data.shape) == 3 else n
        strip = save_trajectory(drawing, drawing.condition(shown), shown, 0, folder)
        pictures["samples/trajectory"] = strip
    experiment.model.cpu()
    return pictures
