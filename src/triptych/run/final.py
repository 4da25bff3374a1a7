"""Draw a run's final samples from its checkpoint, compute their metrics and save pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pytorch_lightning.strategies import Strategy

from triptych.records import Entries
from triptych.run.account import FinalCheckpoint, baseline_bounds
from triptych.run.build import build_drawings
from triptych.run.checkpoints import save_checkpoint
from triptych.run.directory import RunDirectory
from triptych.run.experiment import Experiment
from triptych.run.measure import (
    MeasuredValue,
    draw_sets,
    measure_drawn_sets,
    measure_posterior_mean,
)
from triptych.run.model import compile_networks
from triptych.run.pictures import save_picture, save_prompts, save_real_images, save_trajectory
from triptych.run.processes import rank

TRAJECTORIES = 4  # images in the picture of sampling trajectories; points are all shown


@dataclass(frozen=True)
class FinalSamples:
    """What follows from a run's final samples: entries of ``summary.json``, and pictures.

    ``pictures``: {logger key: file}. ``evaluations``: denoiser calls per sample, for the entry
    ``cost``.
    """

    entries: Entries = field(default_factory=dict)
    evaluations: dict[str, float] = field(default_factory=dict)  # calls of the denoiser per sample
    pictures: dict[str, Path] = field(default_factory=dict)


def draw_final_samples(
    checkpoint: FinalCheckpoint, strategy: Strategy, step: int, release: Callable[[], None]
) -> FinalSamples:
    """Draw samples, compute their metrics, and save the model's panels and artifacts.

    ``release`` is called as soon as only rank 0 has work left. All ranks raise Diverged if a sample
    is not finite; ``step`` is the training step that the error names.
    """
    run = checkpoint.run
    experiment = build_drawings(checkpoint.config, checkpoint.data, checkpoint.model())
    model = experiment.model
    if rank() == 0:
        for name, artifact in model.artifacts().items():
            save_checkpoint(artifact, run / name)
    sets: Sequence[MeasuredValue] = ()
    if checkpoint.evaluates_test:
        with compile_networks(model, checkpoint.config):
            sets = draw_sets(experiment, run, strategy, step)
    release()
    if rank() != 0:
        return FinalSamples()
    pictures = _draw_pictures(run, experiment, strategy.root_device)
    entries: Entries = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": None,
    }
    if "samples/final" in pictures:
        entries["samples"] = str(pictures["samples/final"].relative_to(run.path))
    if model.can_sample and checkpoint.evaluates_test:
        entries["baselines"] = baseline_bounds(checkpoint.data)
    entries |= measure_posterior_mean(experiment)
    if sets:
        entries |= measure_drawn_sets(experiment, sets)
    return FinalSamples(model.panels() | entries, _calls_per_sample(experiment), pictures)


def _calls_per_sample(experiment: Experiment) -> dict[str, float]:
    """Return {"evaluations": denoiser calls per sample}; {} for a model without a denoiser."""
    if experiment.drawing is None or experiment.model.denoiser is None:
        return {}
    return {
        "evaluations": float(
            experiment.drawing.sampler.count_denoiser_calls(experiment.model.schedule)
        )
    }


def _draw_pictures(
    run: RunDirectory, experiment: Experiment, device: torch.device
) -> dict[str, Path]:
    """Save ``samples/final.pt`` and pictures of these samples; return {logger key: picture}."""
    drawing, n = experiment.drawing, experiment.config["samples"]["n"]
    if n < 1 or drawing is None:
        return {}
    experiment.model.to(device)  # Lightning has moved the model to the CPU.
    folder = run / "samples"
    pictures = {"samples/final": folder / "final.png"}
    x = drawing.samples(n, seed=0)
    save_picture(x, experiment.data, pictures["samples/final"])
    save_real_images(experiment.data, n, folder / "real.png")
    save_checkpoint({"x": x}, folder / "final.pt")
    prompts = save_prompts(drawing, folder / "prompts.png")
    if prompts is not None:
        pictures["samples/prompts"] = prompts
    if experiment.model.denoiser is not None:
        shown = min(n, TRAJECTORIES) if len(experiment.data.shape) == 3 else n
        strip = save_trajectory(drawing, drawing.condition(shown), shown, 0, folder)
        pictures["samples/trajectory"] = strip
    experiment.model.cpu()
    return pictures
