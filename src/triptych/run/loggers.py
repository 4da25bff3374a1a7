"""Loggers of a run: metrics.csv always, and those that ``logger`` names; no error of theirs ends a run."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.build import build
from triptych.config.nearest import nearest
from triptych.config.schema import MLflowKeys, WandbKeys
from triptych.errors import UserError
from triptych.run import mlflow, wandb
from triptych.run.directory import RunDirectory
from triptych.run.log_content import error_line, warn
from triptych.run.metrics import MetricsCsv
from triptych.run.processes import rank
from triptych.run.result import Result
from triptych.run.tensorboard import TensorBoard
from triptych.run.untrusted import is_composed_here

RETIRED = ("_target_", "log_model")  # in directories of earlier versions
KEYS = {"wandb": (*WandbKeys.__annotations__, *RETIRED), "mlflow": tuple(MLflowKeys.__annotations__)}


class Guarded(Logger):
    """One of Lightning's loggers, of which no error ends a run: the first is one line, and ends the logger.

    Args:
        kind: class of the logger. It has a ``title``, ``pauses`` (seconds before each further try of what has
            failed), ``log_picture`` and ``finish``.
        table: knows the seconds of fitting at each step, which are logged as ``time``.
        arguments: of ``kind``.
    """

    def __init__(self, kind: Any, table: MetricsCsv, *arguments: Any):
        super().__init__()
        self.kind, self.table = kind, table
        self.logger: Any = None
        self.lost = rank() != 0
        self._try(lambda: setattr(self, "logger", kind(*arguments)))

    @property
    def name(self) -> str:
        return str(self.kind.title).lower()

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> Any:
        """The library's own run, for your callbacks; one that ignores everything where there is none."""
        return DummyExperiment() if self.lost else self.logger.experiment

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a logger begins with the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log figures of a step, with the seconds of fitting."""
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        if row:
            row |= self.table.time(step or 0)
            self._try(lambda: self.logger.log_metrics(row, step or 0))

    def log_picture(self, key: str, path: Any, step: int) -> None:
        """Log a picture of a step."""
        self._try(lambda: self.logger.log_picture(key, path, step))

    def close(self, summary: Result | None) -> None:
        """End with the figures of ``summary``; None of a run that has not finished."""
        last, row = self.table.last
        self._try(lambda: self.logger.finish(summary, last, row))

    def _try(self, task: Callable[[], None]) -> None:
        for pause in (*self.kind.pauses, None):
            if self.lost:
                return
            try:
                return task()
            except (Exception, SystemExit) as error:  # a library's, under any name
                if pause is not None:
                    time.sleep(pause)
                    continue
                self.lost = True
                why = error_line(error)
                warn(f"{self.kind.title} is left out from here on ({why}): metrics.csv has the figures")
                if self.kind is wandb.WandbRun:
                    wandb.WandbRun.abandon()


def build_loggers(config: dict, provenance: dict, run: RunDirectory, step: int) -> list[Logger]:
    """Build metrics.csv's logger, then whatever ``logger`` names: ours by name, others by their target.

    The run goes on from ``step``: rows of metrics.csv up to it stand.
    """
    table = MetricsCsv(run / "metrics.csv")
    table.keep_until(step)
    loggers: list[Logger] = [table]
    for name, node in (config["logger"] or {}).items():
        if not node or name == "csv":
            continue
        if name in KEYS:
            for key in sorted({*node} - {*KEYS[name]}):
                fix = nearest(key, list(KEYS[name]))
                raise UserError(f"logger.{name}.{key}={node[key]!r}: no such key, {fix}")
        if name == "tensorboard":
            loggers.append(Guarded(TensorBoard, table, run, step))
        elif name == "mlflow":
            if uri := mlflow.address(node, config, run):
                loggers.append(Guarded(mlflow.MLflowRun, table, run, uri, node.get("experiment")))
        elif name != "wandb":
            loggers.append(build(node, f"logger.{name}", save_dir=str(run.path)))
        elif (mode := wandb.mode_of(node)) != "disabled":
            artifacts = bool(node.get("artifacts"))
            if artifacts and not is_composed_here(run):
                warn("W&B: artifacts are left out: a directory asks for them, not a command of yours")
                artifacts = False
            about = wandb.describe_run(node, config, provenance, run)
            loggers.append(Guarded(wandb.WandbRun, table, run, mode, artifacts, about))
    return loggers


def log_locations(loggers: list[Logger]) -> dict[str, Any]:
    """{"wandb": {"mode", "files", "sync"}}: where W&B's files lie and how to send them; {} without W&B."""
    for logger in loggers:
        if isinstance(logger, Guarded) and isinstance(logger.logger, wandb.WandbRun):
            return {"wandb": logger.logger.location()}
    return {}


@contextmanager
def closing(loggers: list[Logger], run: RunDirectory) -> Iterator[None]:
    """Close the loggers properly, whatever happens."""
    summary = None
    try:
        yield
        summary = run.summary()
    finally:
        close_loggers(loggers, summary)


def close_loggers(loggers: list[Logger], summary: Result | None) -> None:
    """Finish each logger, with the figures of ``summary``; None of a run that has not finished."""
    for logger in loggers:
        if isinstance(logger, Guarded):
            logger.close(summary)
        else:
            logger.finalize("failed" if summary is None else "success")


def exit_if_lost(code: int = 0) -> None:
    """End the process here where W&B's service has died: W&B's own farewell would be a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    if wandb.WandbRun.abandoned:
        os._exit(code)
