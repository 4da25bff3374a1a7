"""The state of one execution of a run in one process: its stage, and what it records."""

import contextlib
import shutil
import traceback
from dataclasses import dataclass, field

from triptych.config.own_code import error_location
from triptych.errors import UserError
from triptych.records import Entries
from triptych.run.chunks import FOLDER
from triptych.run.directory import RunDirectory
from triptych.run.processes import rank
from triptych.run.result import Result
from triptych.run.stopping import Peers, Stop, failure_line


@dataclass
class Session:
    """One execution of a run in one process (rank)."""

    run: RunDirectory
    stop: Stop
    fitted: bool = False
    peers: Peers = field(init=False)

    def __post_init__(self) -> None:
        self.peers = Peers(self.run, self.record_failure)

    @property
    def stage(self) -> str:
        """The current stage: "build" until training begins, then "fit", then "test"."""
        if self.fitted:
            return "test"
        if self.stop.training_began:
            return "fit"
        return "build"

    def record(self, status: str, entries: Entries) -> Result:
        """Return the run's result with this status and these entries; rank 0 also writes it."""
        result = Result.from_run(self.run.provenance, status, **entries)
        if rank() != 0:
            return result
        with self.stop.end_of_run():
            result = self.run.record(result)
            if status != "failed":  # A failed run that is retried can reuse the stored features.
                shutil.rmtree(self.run / FOLDER, ignore_errors=True)
        return result

    def record_failure(self, error: Exception) -> None:
        """Record why the run failed; write an unexpected error's traceback to ``train.log``."""
        if not isinstance(error, UserError) or error_location(error):
            self.log_traceback()
        self.record("failed", {"stage": self.stage, "error": failure_line(error)[:1000]})

    def log_traceback(self) -> None:
        """Append the current exception's traceback to ``train.log``."""
        with (
            contextlib.suppress(OSError),
            open(self.run / "train.log", "a") as log,
        ):
            log.write(traceback.format_exc())
