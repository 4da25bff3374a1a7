"""Draw, measure and picture the samples of the checkpoint that a run leaves."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from triptych.models.base import BoundModel
from triptych.run.account import FinalCheckpoint
from triptych.run.build import build_drawings
from triptych.run.checkpoints import save_checkpoint
from triptych.run.directory import RunDirectory, log_line, to_json
from triptych.run.drawing import Experiment
from triptych.run.fit import build_trainer
from triptych.run.new_process import call_in_new_process
from triptych.run.processes import rank
from triptych.run.result import ENTRIES
from triptych.run.sampling.measure import draw_sets, measure_posterior_mean, measure_samples
from triptych.run.sampling.pictures import save_picture, save_prompts, save_real, save_trajectory

STRIP = 4  # images whose way from noise is kept as a picture; points are one picture, however many
RESERVED = {*ENTRIES} - {"weighting"}  # entries that no model's ``panels`` may overwrite
Drawn = tuple[dict[str, Any], dict[str, Path]]  # entries of ``summary.json``, pictures by their loggers' key


def draw_final(checkpoint: FinalCheckpoint, strategy: Strategy, step: int) -> Drawn:
    """Draw and measure what the configuration asks for, beside the model's own panels and artifacts.

    Diverged, in all processes: a sample of the model of ``step`` is not finite.
    """
    if checkpoint.in_new_processes:
        drawn: Drawn = call_in_new_process(_draw_alone, checkpoint.path, checkpoint.data.numbers, step)
        return drawn
    return _draw(checkpoint, strategy, step)


def _draw_alone(path: Path, numbers: dict[str, Tensor], step: int) -> Drawn:
    checkpoint = FinalCheckpoint.open(path, numbers)
    return _draw(checkpoint, build_trainer(checkpoint.config, None, []).strategy, step)


def _draw(checkpoint: FinalCheckpoint, strategy: Strategy, step: int) -> Drawn:
    run, first = RunDirectory(checkpoint.path.parent.parent), rank() == 0
    experiment = build_drawings(checkpoint.config, checkpoint.data, checkpoint.model())
    model = experiment.model
    if first:
        for name, artifact in model.artifacts().items():
            save_checkpoint(artifact, run / name)
    sets = draw_sets(experiment, run, strategy, step) if checkpoint.config.get("test", True) else None
    if checkpoint.peers:
        checkpoint.peers.stop_watching()  # they have nothing more to do
    if not first:
        return {}, {}
    pictures = _draw_pictures(run, experiment, strategy.root_device)
    picture = pictures.get("samples/final")
    entries = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "evaluations": _evaluations(experiment),
        "samples": picture and str(picture.relative_to(run.path)),
        **measure_posterior_mean(experiment),
        **(measure_samples(experiment, sets, run) if sets else {}),
        **_panels(run, model),
    }
    return entries, pictures


def _evaluations(experiment: Experiment) -> dict[str, float]:
    """Return {"evaluations": calls of the denoiser for one sample}, or {}."""
    if experiment.drawing is None or experiment.model.denoiser is None:
        return {}
    return {"evaluations": float(experiment.drawing.sampler.calls_under(experiment.model.schedule))}


def _draw_pictures(run: RunDirectory, experiment: Experiment, device: torch.device) -> dict[str, Path]:
    """Save ``samples/final.pt`` and the pictures of samples, and return those for the loggers."""
    drawing, n = experiment.drawing, experiment.config["samples"]["n"]
    if n < 1 or drawing is None:
        return {}
    experiment.model.to(device)  # from where Lightning has taken it
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


def _panels(run: RunDirectory, model: BoundModel) -> dict[str, Any]:
    panels = {}
    for key, value in model.panels().items():
        why = f"{key} is an entry of summary.json, choose another" if key in RESERVED else ""
        try:
            to_json(value)
        except (TypeError, ValueError) as error:
            why = f"{key}: {error}"
        if why:
            log_line(run, f"{type(model).__name__}.panels: left out ({why}); return plain values")
        else:
            panels[key] = value
    return panels
