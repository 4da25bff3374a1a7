"""Samples while training: a picture in the run's directory and in W&B, always from the same noise."""

from pathlib import Path

import pytorch_lightning as pl

from triptych.data.base import DataModule
from triptych.diffusion.sampler import Sampler
from triptych.run.sampling.draw import draw_samples
from triptych.run.sampling.pictures import log_picture, save_picture


class SampleGrid(pl.Callback):
    """Draw samples with the run's sampler after validation: 16 of ``n``, at most ``pictures`` times in a run.

    Validation sees the averaged weights, and so do the samples.
    """

    def __init__(self, sampler: Sampler, data: DataModule, folder: Path, n: int = 16, pictures: int = 3):
        self.sampler, self.data, self.folder = sampler, data, folder
        self.n, self.pictures = min(16, n), pictures

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.n < 1 or self.pictures < 1 or not trainer.is_global_zero or trainer.sanity_checking:
            return
        every = max(1, trainer.max_steps // self.pictures)
        interval = int(trainer.val_check_interval or 1) // trainer.accumulate_grad_batches
        if trainer.global_step % every >= interval:
            return
        x = draw_samples(module, self.sampler, self.data, self.n, seed=0)
        save_picture(x, self.data, self.folder / f"step_{trainer.global_step:07d}.png")
        log_picture(
            trainer.loggers,
            "samples",
            self.folder / f"step_{trainer.global_step:07d}.png",
            trainer.global_step,
        )
