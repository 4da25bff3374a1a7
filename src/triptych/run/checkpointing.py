"""Save the last checkpoint, to resume from, and the best one by the validation bound."""

import math
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from triptych.errors import Diverged, Interrupted
from triptych.run.checkpoints import BEST, LAST
from triptych.run.directory import PRUNE, RunDirectory, write_atomic
from triptych.run.metrics import MetricsCsv
from triptych.run.stopping import Stop


class Keep(pl.Callback):
    """Save after each validation, else every ``every`` steps, and before the run stops.

    A checkpoint stands between two steps: with it, everything up to its step is done, and is on disk. Its
    state is the best score so far and the seconds that the fit has taken, also before an interruption.

    Args:
        run: whose ``checkpoints/`` are written.
        monitor: name of the figure that "best" is lowest in; None where nothing is validated.
        every: steps between two validations.
        record: what each checkpoint says of the run: its configuration, and the data that it is trained on.
    """

    def __init__(
        self, run: RunDirectory, monitor: str | None, every: int, stop: Stop, record: dict[str, Any]
    ):
        self.record = record
        self.folder, self.monitor, self.every, self.stop = run / "checkpoints", monitor, every, stop
        self.best = math.inf
        self._before: float = 0.0
        self._began: float | None = None  # while nothing is being fitted
        self._seen = self._saved = 0

    @property
    def seconds(self) -> float:
        """Seconds of fitting so far, without those lost to a kill."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._before = state_dict["best"], state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["triptych"] = self.record

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        self._seen = self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:  # a gradient was accumulated, no step taken
            return
        self._seen = step
        due = step % self.every == 0
        stop = self.stop.agreed(trainer, look=due)
        if due and self.monitor:  # validation comes next and saves
            self.stop.look_at_weights(trainer, module)
            return
        if due or stop is not None:
            self._row(trainer, _tables(trainer) if stop is None else trainer.loggers)
            self._save(trainer, LAST)
        if stop is not None:
            raise Interrupted(stop, step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor is None:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(score):  # the same in all processes
            raise Diverged("the validation bound", trainer.global_step)
        if score < self.best:
            self.best = score
            self._save(trainer, BEST)
            if trainer.is_global_zero:  # the same state; a copy, so that damage to one leaves the other
                write_atomic(self.folder / LAST, (self.folder / BEST).read_bytes())
        else:
            self._save(trainer, LAST)
        if (self.folder.parent / PRUNE).exists():  # by a search that has seen enough
            self.stop.received = self.stop.received or int(signal.SIGTERM)
        if (stop := self.stop.agreed(trainer, look=True)) is not None:
            raise Interrupted(stop, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step > self._saved:
            self._save(trainer, LAST)
        self._before, self._began = self.seconds, None

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self.stop.look_at_weights(trainer, trainer.lightning_module)
        self._saved = trainer.global_step
        for table in _tables(trainer):
            table.flush()  # before the checkpoint: what it has seen is on disk, if it is
        trainer.save_checkpoint(self.folder / name)

    def _row(self, trainer: Any, loggers: Sequence[Logger]) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
            for logger in loggers:
                logger.log_metrics(figures, trainer.global_step - 1)


def _tables(trainer: pl.Trainer) -> list[MetricsCsv]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)]
