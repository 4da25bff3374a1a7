"""Show progress: a bar in a terminal, ``progress.json`` for other processes, and pictures."""

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

WRITE_INTERVAL = 1.0  # minimum seconds between two writes of progress.json
WINDOW = 60.0  # the speed is averaged over the last so many seconds, including validation
# Metrics that the progress bar shows, and the one in progress.json.
SHOWN = ("train/loss", "val/bpd", "val/nats_per_dim")
BOUND = "val/bound"


class Progress(pl.Callback):
    """Show a progress bar over training steps and test batches, and write ``progress.json``.

    The file is written at most once in ``WRITE_INTERVAL`` seconds.
    """

    def __init__(self, run: RunDirectory, bar: bool = True):
        self.run = run
        # For tqdm, None hides the bar if stderr is not a terminal.
        self._hidden = None if bar else True
        self._written = 0.0
        # Last step and number of steps of the fit, as the test uses another trainer.
        self._place = (0, 0)
        self._bar: Any = None
        self._figures: dict[str, float] = {}  # metrics as they were last read
        self._read_step = 0
        # (time in seconds, step) during the last WINDOW seconds.
        self._marks: deque[tuple[float, int]] = deque()

    def write(self, stage: str, step: int, max_steps: int, bound: float | None = None) -> None:
        """Write ``progress.json``, on rank 0 only."""
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
        if self._bar is None:
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        step = trainer.global_step
        # With gradient accumulation several batches have the same step.
        if step % every == 0 and step != self._read_step:
            self._read_metrics(trainer)
        if time.monotonic() - self._written < WRITE_INTERVAL:
            return
        self._bar.update(step - self._bar.n)
        shown = {k.split("/")[-1]: f"{v:.3f}" for k, v in self._figures.items() if k in SHOWN}
        self._bar.set_postfix(shown, refresh=False)
        # A bound of NaN, before the first validation, is written as null.
        bound = self._figures.get(BOUND, math.nan)
        self.write("fit", step, trainer.max_steps, bound)

    def _read_metrics(self, trainer: pl.Trainer) -> None:
        """Read the metrics that the bar shows; at logged steps only, as this waits for a GPU."""
        self._read_step, metrics = trainer.global_step, trainer.callback_metrics
        self._figures = {name: float(metrics[name]) for name in (*SHOWN, BOUND) if name in metrics}

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print the validation bound in a line if stderr is not a terminal, which shows no bar.

        With ``trainer.enable_progress_bar=false`` nothing is printed.
        """
        if self._bar is None:
            return
        self._read_metrics(trainer)
        if self._bar.disable and not self._hidden:
            bound = self._figures.get(BOUND, math.nan)
            log_line(
                self.run,
                f"step {trainer.global_step}/{trainer.max_steps}: validation bound {bound:.4f}",
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_test_end = on_train_end

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
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
        if time.monotonic() - self._written > WRITE_INTERVAL:
            self.write("test", *self._place)


class SampleGrid(pl.Callback):
    """Save a picture of up to 16 samples, without guidance, ``pictures`` times in a run.

    It is saved after a validation.
    """

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
