"""Show progress: a bar in a terminal, ``progress.json`` for other processes, and sample grids."""

import math
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from triptych.run.directory import RunDirectory, log_line
from triptych.run.drawing import Drawing
from triptych.run.pictures import log_picture, save_picture
from triptych.run.processes import rank
from triptych.terminal import progress_bar

WINDOW = 60.0  # seconds over which the speed is taken: validation counts
SHOWN = ("train/loss", "val/bpd", "val/nats_per_dim")


class Progress(pl.Callback):
    """A progress bar over steps and test batches, and a file for other processes.

    The file is written at most once in ``every`` seconds.
    """

    def __init__(self, run: RunDirectory, every: float = 1.0, bar: bool = True):
        self.run, self.every = run, every
        # None hides the bar if stderr is no terminal.
        self._hidden = None if bar else True
        self._written = 0.0
        # The fit's last step and number of steps; the test has another trainer.
        self._place = (0, 0)
        self._bar: Any = None
        self._marks: deque[tuple[float, int]] = deque()  # (seconds, step) of the last WINDOW seconds

    def write(self, stage: str, step: int, max_steps: int, bound: float | None = None) -> None:
        """Write the file, in the run's first process only."""
        if rank() != 0:
            return
        self._written = now = time.monotonic()
        self._place = (step, max_steps)
        where = {"stage": stage, "step": step, "max_steps": max_steps, "updated": time.time()}
        if stage == "fit":
            self._marks.append((now, step))
            while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW:
                self._marks.popleft()
            then, before = self._marks[0]
            where["steps_per_second"] = None
            if step > before:
                where["steps_per_second"] = (step - before) / (now - then)
        self.run.write("progress.json", where | {"bound": bound})

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            step, steps = trainer.global_step, trainer.max_steps
            self._bar = progress_bar(total=steps, initial=step, desc="fit", disable=self._hidden)
            self.write("fit", step, steps)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self._bar is None or time.monotonic() - self._written < self.every:
            return
        self._bar.update(trainer.global_step - self._bar.n)
        shown = {k.split("/")[-1]: f"{v:.3f}" for k, v in trainer.callback_metrics.items() if k in SHOWN}
        self._bar.set_postfix(shown, refresh=False)
        bound = float(trainer.callback_metrics.get("val/bound", math.nan))
        # Null before the first validation.
        self.write("fit", trainer.global_step, trainer.max_steps, bound)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print a line if no bar is visible, unless ``trainer.enable_progress_bar=false``."""
        if self._bar is not None and self._bar.disable and not self._hidden:
            bound = float(trainer.callback_metrics.get("val/bound", math.nan))
            step = f"step {trainer.global_step}/{trainer.max_steps}"
            log_line(self.run, f"{step}: validation bound {bound:.4f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_test_end = on_train_end

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, module)

    def on_test_start(self, trainer: Any, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            batches = sum(trainer.num_test_batches)
            name = trainer.test_dataloaders.name
            self._bar = progress_bar(total=batches, desc=f"bound of {name}", disable=self._hidden)

    def on_test_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self._bar is None:
            return
        self._bar.update()
        if time.monotonic() - self._written > self.every:
            self.write("test", *self._place)


class SampleGrid(pl.Callback):
    """Draw up to 16 unguided samples after validation, ``pictures`` times in a run."""

    def __init__(self, drawing: Drawing, folder: Path, n: int, pictures: int):
        self.drawing, self.folder = replace(drawing, denoiser=None, sources={}), folder
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
