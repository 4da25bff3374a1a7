"""Checkpoints: plain data, written atomically, and loaded without executing code.

Here it is also decided when a run saves which checkpoint.
"""

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from triptych.errors import Diverged, ForeignCheckpoint, Interrupted, UserError
from triptych.files import load_tensors
from triptych.run.directory import BEST, LAST, PRUNE, RunDirectory, log_line, write_atomic
from triptych.run.stopping import Stop
from triptych.run.untrusted import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save Lightning's checkpoints atomically: a kill leaves the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getvalue())


def newest_readable(paths: list[Path]) -> Path | None:
    """Return the readable checkpoint with the highest step; on a tie, "last".

    Damaged checkpoints are reported on one line. ForeignCheckpoint: all readable ones are another
    run's, which a new start would overwrite.
    """
    readable: list[tuple[int, bool, Path]] = []
    foreign: list[ForeignCheckpoint] = []
    problems: list[str] = []
    for path in paths:
        try:
            readable.append((read_checkpoint(path)["global_step"], path.name == LAST, path))
        except ForeignCheckpoint as error:
            foreign.append(error)
            problems.append(str(error))
        except (UserError, OSError) as error:
            problems.append(str(error))
    if foreign and not readable:
        raise foreign[0]
    for problem in problems:
        log_line(None, f"passed over: {problem}")
    return max(readable)[2] if readable else None


def read_tensors(path: Path, kind: str) -> dict[str, Any]:
    """Load a file of tensors and plain data; UserError for any other content."""
    try:
        return load_tensors(path)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(f"{path}: {error}, so not {kind} of a run; restore it") from error


class Keep(pl.Callback):
    """Save after each validation, or else every ``every`` steps, and before the run stops.

    A checkpoint is saved between two steps, and all files up to its step are on disk. "best" is the
    lowest in ``monitor``; there is none without validation. ``record``: what each checkpoint
    records
    of the run and its data.
    """

    def __init__(
        self, run: RunDirectory, monitor: str | None, every: int, stop: Stop, record: dict[str, Any]
    ):
        self.run, self.record = run, record
        self.folder, self.monitor, self.every, self.stop = run / "checkpoints", monitor, every, stop
        self.best = math.inf
        self._before: float = 0.0
        self._began: float | None = None  # while nothing is being fitted
        self._seen = 0
        self._saved = (0, False)  # the step, and whether a callback had ended the fit
        self._stopped = False  # the same for the checkpoint from which the run resumes

    @property
    def seconds(self) -> float:
        """Seconds of fitting so far, without those that a kill has lost."""
        if self._began is None:
            return self._before
        return self._before + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds, "stopped": self._saved[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._before = float(state_dict["best"]), float(state_dict["seconds"])
        self._stopped = state_dict.get("stopped", False)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["triptych"] = self.record

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        trainer.should_stop |= self._stopped
        self._seen = trainer.global_step
        self._saved = (trainer.global_step, trainer.should_stop)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:  # A gradient was accumulated, but no step was taken.
            return
        self._seen = step
        due = step % self.every == 0
        stop = self.stop.agreed(trainer, look=due)
        if due and self.monitor:  # Validation comes next and saves.
            self.stop.check_weights(trainer, module)
        elif stop is not None:
            self._log_row(trainer, trainer.loggers)
            self._save(trainer, LAST)
            raise Interrupted(stop, step)
        elif due:
            self._log_row(trainer, trainer.loggers[:1])
            self._save(trainer, LAST)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor is None:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(score):  # It is the same in all processes.
            raise Diverged("the validation bound", trainer.global_step)
        if score < self.best:
            self.best = score
            self._save(trainer, BEST)
            if trainer.is_global_zero:  # A copy of the same state: damage to one leaves the other.
                write_atomic(self.folder / LAST, (self.folder / BEST).read_bytes())
        else:
            self._save(trainer, LAST)
        if (self.run / PRUNE).exists():  # A search has seen enough.
            self.stop.request()
        stop = self.stop.agreed(trainer, look=True)
        if stop is not None:
            raise Interrupted(stop, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if (trainer.global_step, trainer.should_stop) != self._saved:
            self._save(trainer, LAST)
        self._before, self._began = self.seconds, None

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self.stop.check_weights(trainer, trainer.lightning_module)
        self._saved = (trainer.global_step, trainer.should_stop)
        metrics_csv: Any = trainer.loggers[0]
        metrics_csv.flush()  # Rows up to a checkpoint are on disk before it.
        trainer.save_checkpoint(self.folder / name)

    def _log_row(self, trainer: Any, loggers: Sequence[Logger]) -> None:
        """Log a row that Lightning would otherwise log only after the end of this step."""
        if trainer.global_step % trainer.log_every_n_steps:
            return
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        for logger in loggers:
            logger.log_metrics(figures, trainer.global_step - 1)
