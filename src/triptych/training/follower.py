"""Loggers that follow ``metrics.csv`` in a thread of their own, and can neither hold up a run nor end one."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from triptych.config.identity import leaves
from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.runs.plain import shown
from triptych.runs.processes import rank
from triptych.training.wandb_content import comparable, figures

LATE = 2  # Lightning logs a training step's row after the validation that follows it
PATIENCE = 30.0  # seconds
NOT_PARAMETERS = ("logger", "paths")  # of what a run is
Rows = dict[int, dict[str, float]]


class Follower(Logger):
    """A Lightning logger that hands the rows of ``table`` on, and to whom nothing else need be logged.

    A subclass says how one begins, takes rows and pictures, and ends; all of it runs in one thread, in that
    order, and whatever it raises is one line. What has been taken is not handed over again.

    Args:
        every: seconds between two looks at the table.
    """

    title = ""  # for people
    pauses: tuple[float, ...] = ()  # seconds before each further try of what has failed

    def __init__(self, run: RunDirectory, table: MetricsCsv, every: float = 2.0):
        super().__init__()
        self.run, self.table, self.every = run, table, every
        self.lost = False  # it has failed: said once, and left out from there on
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._started = threading.Event()  # or has failed to
        self._queued = -1
        self._looked = 0.0

    # a subclass's own, called in the thread -----------------------------------------------------------

    def start(self, step: int) -> None:
        """Begin, for a run that goes on from ``step``."""
        raise NotImplementedError

    def take(self, rows: Rows) -> None:
        """Rows by step, rising."""
        raise NotImplementedError

    def take_picture(self, key: str, path: Path, step: int) -> None:
        """A picture that belongs to a step."""
        raise NotImplementedError

    def finish(self, ok: bool, final: dict[str, float], step: int) -> None:
        """End; ``final``: the figures of the summary that the last row, of ``step``, does not have."""
        raise NotImplementedError

    # what Lightning calls ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.title.lower()

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is handed over at the beginning."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """The table has them."""

    @rank_zero_only
    def save(self) -> None:
        """Lightning calls this at every row; the table is looked at now and then."""
        if self._worker is not None and time.monotonic() - self._looked > self.every:
            self._looked = time.monotonic()
            self.hand_over(self.table.last - LATE)

    # what the run calls -----------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Start, in the background, for a run that goes on from ``step``."""
        if rank() != 0:
            return
        self._worker = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._worker.start()
        self._queue.put(lambda: self.start(step))
        self.hand_over(self.table.last - LATE)

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """A picture of a step."""
        if self._worker is not None:
            self._queue.put(lambda: self.take_picture(key, path, step))

    def close(self, ok: bool) -> None:
        """Hand over what is left, and return when it is taken, or has had its time.

        Of a run that may go on the last steps are kept back: their rows are not complete.
        """
        if self._worker is None:
            return
        last = self.last
        self.hand_over(last if ok else self.table.last - LATE)
        row = self.table.rows(last - 1, last).get(last, {})
        found = figures(self.run.summary() or {}) if ok else {}
        final = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and k not in row}
        self._queue.put(lambda: self.finish(ok, final, max(last, 0)))
        self._queue.put(None)
        self._worker.join(self.patience(ok))
        if self._worker.is_alive():
            self._lose("does not answer")
        self._worker = None

    # for subclasses ---------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """The last step of which there is anything to take."""
        return self.table.last

    def patience(self, ok: bool) -> float:
        """Seconds that there are for what is left at the end."""
        return PATIENCE

    def drawn(self, step: int) -> Iterator[tuple[int, Path]]:
        """The pictures of training that the directory has, by step, up to ``step``."""
        for path in sorted((self.run / "samples").glob("step_*.png")):
            number = path.stem.removeprefix("step_")
            if number.isdigit() and int(number) <= step:
                yield int(number), path

    @property
    def parameters(self) -> dict[str, Any]:
        """The run's configuration as flat keys, "optimizer.lr", and its choices, "objective"."""
        config, choices = self.run.config(), self.run.provenance().get("choices", {})
        flat = {k: v for k, v in leaves(config) if k.split(".")[0] not in NOT_PARAMETERS}
        return flat | comparable(choices, config)

    @property
    def began(self) -> float:
        """When the run was made, seconds since the epoch: a row's time counts from there."""
        with contextlib.suppress(KeyError, ValueError, TypeError):
            return datetime.strptime(self.run.provenance()["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        return time.time()

    # the thread's -----------------------------------------------------------------------------------

    def hand_over(self, until: int) -> None:
        """Queue the rows after the last that was queued, up to the step ``until``."""
        found = self.table.rows(self._queued, until)
        rows = {step: {name: float(value) for name, value in row.items()} for step, row in found.items()}
        self._queued = max(self._queued, until)
        if rows:
            self._queue.put(lambda: self.take(rows))

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            for pause in (*self.pauses, None):
                if self.lost:
                    break
                try:
                    task()
                    break
                except BaseException as error:  # a library's, under any name
                    if pause is None:
                        self._lose(line(error))
                    else:
                        time.sleep(pause)
            self._started.set()

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            say(f"{self.title} is left out from here on ({why}): metrics.csv has the figures")


def line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def say(text: str) -> None:
    """One line for people."""
    print(text, file=sys.stderr, flush=True)


def as_text(value: Any) -> str:
    """A parameter as one types it."""
    return shown(value)
