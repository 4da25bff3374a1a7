"""Write checkpoints atomically, and load them as plain data without executing code.

``CheckpointSaver`` decides when a run saves its last and its best checkpoint.
"""

import copy
import io
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from triptych.errors import Diverged, ForeignCheckpoint, Interrupted, UserError
from triptych.files import load_tensors
from triptych.records import Checkpoint, Entries
from triptych.run.directory import BEST, LAST, PRUNE, RunDirectory, log_line, write_atomic
from triptych.run.stopping import Stop
from triptych.run.untrusted import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """A CheckpointIO that saves atomically: a kill leaves either the old file or the new one.

    With ``background``, a thread writes a copy of the state while training goes on. Files are
    written one after the other. An error of the thread is raised by the next save or load, or at
    the end of the fit, even if the fit itself fails.
    """

    def __init__(self, background: bool = False):
        self.background = background
        self._writing: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: Checkpoint, path: Any, storage_options: Any = None
    ) -> None:
        self.wait()
        paths = [Path(path)]
        if paths[0].name == BEST:  # A full copy, so that damage to one file leaves the other.
            paths.append(paths[0].with_name(LAST))
        if not self.background:
            save_checkpoint(checkpoint, *paths)
            return
        thread = ThreadPoolExecutor(1)
        self._writing = thread.submit(save_checkpoint, copy_to_cpu(checkpoint), *paths)
        thread.shutdown(wait=False)  # It ends after this file.

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> Checkpoint:
        self.wait()
        return read_checkpoint(Path(path))

    def wait(self) -> None:
        """Wait until the thread has written its checkpoint; raise the thread's error, if any."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        """Wait for the last write; Lightning calls this after every fit, even a failed one."""
        self.wait()


def copy_to_cpu(checkpoint: Checkpoint) -> Checkpoint:
    """Return a deep copy of a checkpoint with all tensors on the CPU."""
    copies: dict[int, Any] = {}

    def add_copy(tensor: Tensor) -> None:
        copies[id(tensor)] = tensor.detach().to("cpu", copy=True)

    apply_to_collection(checkpoint, Tensor, add_copy)
    return copy.deepcopy(checkpoint, copies)


def save_checkpoint(checkpoint: Checkpoint, *paths: Path) -> None:
    """Write a checkpoint atomically, to each path."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    for path in paths:
        write_atomic(path, buffer.getvalue())


def newest_readable(paths: list[Path]) -> Path | None:
    """Return the readable checkpoint with the highest step, or None; on a tie, ``last.ckpt``.

    Damaged checkpoints are skipped and logged. Raises ForeignCheckpoint if none is readable and one
    is from another run: starting over would overwrite it.
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
        log_line(None, f"checkpoint skipped: {problem}")
    return max(readable)[2] if readable else None


def read_tensors(path: Path, kind: str) -> Entries:
    """Load a file of tensors and plain data; UserError for any other content."""
    try:
        return load_tensors(path)  # type: ignore[no-any-return]  # torch.load returns Any
    except ValueError as error:
        raise UserError(f"{path}: not {kind} of a run ({error}); restore it") from error


class CheckpointSaver(pl.Callback):
    """A callback that saves after each validation, or every ``every`` steps, and before a stop.

    Checkpoints are saved between two steps, after all metrics up to that step are on disk.
    ``monitor`` is the metric whose lowest value makes the best checkpoint, or None without
    validation. ``record`` is the entry "triptych" of every checkpoint: configuration and data.
    """

    def __init__(
        self, run: RunDirectory, monitor: str | None, every: int, stop: Stop, record: Entries
    ):
        self.run, self.record = run, record
        self.folder, self.monitor, self.every, self.stop = run / "checkpoints", monitor, every, stop
        self.best = math.inf
        self._earlier_seconds: float = 0.0  # of fitting, before the current fit
        self._start_time: float | None = None  # start time of the current fit; None outside a fit
        self._last_step = 0  # the optimizer step that was last seen
        # The last saved step, and whether a callback had ended the fit (should_stop) by then.
        self._saved = (0, False)
        self._stopped = False  # whether the fit had already ended in the resumed checkpoint

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint, the same in all versions."""
        return "Keep"

    @property
    def seconds(self) -> float:
        """Seconds of fitting so far; time between the last checkpoint and a kill does not count."""
        if self._start_time is None:
            return self._earlier_seconds
        return self._earlier_seconds + time.monotonic() - self._start_time

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds, "stopped": self._saved[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._earlier_seconds = float(state_dict["best"]), float(state_dict["seconds"])
        self._stopped = state_dict.get("stopped", False)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Checkpoint) -> None:
        checkpoint["triptych"] = self.record

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start_time = time.monotonic()
        trainer.should_stop |= self._stopped
        self._last_step = trainer.global_step
        self._saved = (trainer.global_step, trainer.should_stop)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._last_step:  # Gradients were accumulated, but no optimizer step was taken.
            return
        self._last_step = step
        due = step % self.every == 0
        stop = self.stop.agreed_signal(trainer, force=due)
        if due and self.monitor:  # Validation comes next; on_validation_end saves.
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
        if not math.isfinite(score):  # The score is equal in all processes, so all raise.
            raise Diverged("the validation bound", trainer.global_step)
        if score < self.best:
            self.best = score
            self._save(trainer, BEST)  # This writes the last checkpoint, too.
        else:
            self._save(trainer, LAST)
        if (self.run / PRUNE).exists():  # A hyperparameter search has pruned this run.
            self.stop.request_stop()
        stop = self.stop.agreed_signal(trainer, force=True)
        if stop is not None:
            raise Interrupted(stop, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if (trainer.global_step, trainer.should_stop) != self._saved:
            self._save(trainer, LAST)
        self._earlier_seconds, self._start_time = self.seconds, None

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        """Save a checkpoint named ``name``, after checking the weights and writing all metrics."""
        self.stop.check_weights(trainer, trainer.lightning_module)
        self._saved = (trainer.global_step, trainer.should_stop)
        metrics_csv: Any = trainer.loggers[0]
        metrics_csv.flush()  # Write the metrics up to this step before the checkpoint.
        trainer.save_checkpoint(self.folder / name)

    def _log_row(self, trainer: Any, loggers: Sequence[Logger]) -> None:
        """Log this step's training metrics to ``loggers`` now; Lightning would do so too late."""
        if trainer.global_step % trainer.log_every_n_steps:
            return
        figures = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")
        }
        for logger in loggers:
            logger.log_metrics(figures, trainer.global_step - 1)
