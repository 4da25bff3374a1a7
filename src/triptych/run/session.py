"""One execution of a run in one of its processes: its stage and its records."""

import contextlib
import shutil
import traceback
from dataclasses import dataclass, field
from typing import Any

from triptych.config.own_code import raised_at
from triptych.errors import UserError
from triptych.files import no_link
from triptych.run.chunks import FOLDER
from triptych.run.directory import RunDirectory
from triptych.run.new_process import FailedCall
from triptych.run.processes import rank
from triptych.run.result import Result
from triptych.run.stopping import Peers, Stop, failure_line


@dataclass
class Session:
    """One execution of a run in one of its processes."""

    run: RunDirectory
    stop: Stop
    fitted: bool = False
    peers: Peers = field(init=False)

    def __post_init__(self) -> None:
        self.peers = Peers(self.run, self.record_failure)

    @property
    def stage(self) -> str:
        """Return "build" until training begins, then "fit", then "test"."""
        if self.fitted:
            return "test"
        if self.stop.began:
            return "fit"
        return "build"

    def record(self, status: str, entries: dict[str, Any]) -> Result:
        """Return the result, and write it if this process is the run's first."""
        result = Result.of(self.run.provenance, status, **entries)
        if rank() != 0:
            return result
        result = self.run.record(result)
        if status != "failed":  # A retried run reuses the samples that were drawn.
            shutil.rmtree(self.run / FOLDER, ignore_errors=True)
        return result

    def record_failure(self, error: Exception) -> None:
        """Record why the run failed; tracebacks of unexpected errors go to ``train.log``."""
        if not isinstance(error, UserError) or isinstance(error, FailedCall) or raised_at(error):
            self.log_traceback()
        self.record("failed", {"stage": self.stage, "error": failure_line(error)[:1000]})

    def log_traceback(self) -> None:
        """Append the traceback of the error that is being handled to ``train.log``."""
        with contextlib.suppress(OSError), open(self.run / "train.log", "a", opener=no_link) as log:
            log.write(traceback.format_exc())
