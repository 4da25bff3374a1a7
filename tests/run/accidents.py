"""Accidents at a chosen moment of a run, and its table after them."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import Interrupted
from triptych.models.diffusion import Diffusion
from triptych.run.checkpoints import CheckpointSaver
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute


class Accident(Exception):
    """An accident of one of the kinds below."""


def stumble() -> None:
    raise Accident


def at_call(patch: pytest.MonkeyPatch, method: str, at: int, do: Callable[[], Any]) -> None:
    """Call ``do()`` before call number ``at`` of the model's ``method``."""
    original, calls = getattr(Diffusion, method), []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == at:
            do()
        return original(self, *arguments)

    patch.setattr(Diffusion, method, counted)


def stopped(run: RunDirectory, at: int = 4, number: int = signal.SIGTERM) -> RunDirectory:
    """Ask the run to stop in step number ``at``."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as asked:
        at_call(patch, "training_step", at, lambda: os.kill(os.getpid(), number))
        execute(run)
    assert asked.value.signal == number and run.checkpoints()
    return run


def stop_after(run: RunDirectory, at: int) -> RunDirectory:
    """End the run after step ``at``, between two checkpoints, as a kill would."""
    after_a_step = CheckpointSaver.on_train_batch_end

    def then_fail(keep, trainer, *rest):
        after_a_step(keep, trainer, *rest)
        if trainer.global_step == at:
            stumble()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Accident):
        patch.setattr(CheckpointSaver, "on_train_batch_end", then_fail)
        execute(run)
    (run / "summary.json").unlink()
    return run


def rows(folder: RunDirectory | Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv."""
    with open(folder / "metrics.csv", newline="") as file:
        return [*csv.DictReader(file)]


def column(folder: RunDirectory | Path, name: str) -> list[float]:
    """Return the figures of a column in metrics.csv, from the rows that have one."""
    return [float(row[name]) for row in rows(folder) if row[name]]


def table(folder: RunDirectory | Path) -> list[dict[str, str]]:
    """Return metrics.csv without its time column."""
    clock = ("train/images_per_second", "time")
    return [
        {name: value for name, value in row.items() if name not in clock} for row in rows(folder)
    ]


def results(sweep: Path) -> list[dict[str, str]]:
    """Return the report's table without times, machines and paths."""
    with open(sweep / "results.csv", newline="") as file:
        found = [*csv.DictReader(file)]
    own = {"started", "directory", "sweep", "cost/memory"} | {k for k in found[0] if "second" in k}
    return [{name: value for name, value in row.items() if name not in own} for row in found]
