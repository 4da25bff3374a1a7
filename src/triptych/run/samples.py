"""Samples while training: a picture in the run's directory and in W&B, always from the same noise."""

from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl

from triptych.run.drawing import Drawing
from triptych.run.sampling.pictures import log_picture, save_picture


class SampleGrid(pl.Callback):
    """Draw samples after validation, unguided: 16 of ``n``, at most ``pictures`` times in a run.

    Validation sees the averaged weights, and so do the samples.
    """

    def __init__(self, drawing: Drawing, folder: Path, n: int = 16, pictures: int = 3):
        self.drawing, self.folder = replace(drawing, denoiser=None, sources=()), folder
        self.n, self.pictures = min(16, n), pictures

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.n < 1 or self.pictures < 1 or not trainer.is_global_zero or trainer.sanity_checking:
            return
        every = max(1, trainer.max_steps // self.pictures)
        interval = int(trainer.val_check_interval or 1) // trainer.accumulate_grad_batches
        if trainer.global_step % every >= interval:
            return
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        save_picture(self.drawing.samples(self.n, seed=0), self.drawing.data, path)
        log_picture(trainer.loggers, "samples", path, trainer.global_step)
