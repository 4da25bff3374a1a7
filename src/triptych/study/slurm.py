"""Watch SLURM's queue, so that a sweep does not wait for a job that ended without a result.

submitit asks ``sacct``. On clusters without SLURM accounting ``sacct`` knows no jobs, and a sweep
would wait for a cancelled job without end. On others, one cancelled job would end the wait for all
jobs. ``squeue`` works on both.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn, JobStatus
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from triptych.errors import StorageError
from triptych.run.directory import write_atomic

# Final states of a job. In all other states it runs or will run.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
GONE = "gone from the queue"  # SLURM forgets an ended job after MinJobAge
UNSEEN = "never seen"  # the job is hidden, or on another cluster
PATIENCE = 20.0  # seconds until an ended job is over for good; a requeued job returns sooner
EVERY = 30  # seconds between two queries of the queue

Outcome = Callable[[str, Sequence[str], str], Any]
log = logging.getLogger(__name__)


def query_queue() -> dict[str, str] | None:
    """Return {job: state} of this user's jobs in SLURM's queue; None if the query fails."""
    # Remove the user's defaults (SQUEUE_PARTITION, ...), which could hide jobs.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    command = ["squeue", "-h", "-r", "-a", "-t", "all", "-u", str(os.getuid()), "-o", "%i %T"]
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Read lines with a job and its state, like "17_2 RUNNING"; ignore others, like "CLUSTER: name".
    return dict(re.findall(r"^\s*(\d+(?:_\d+)?) +([A-Z_]+)\s*$", done.stdout, re.MULTILINE))


class QueueWatcher(SlurmInfoWatcher):
    """A watcher of submitit's jobs that ends the wait for jobs without a result.

    ``outcome`` returns the result of such a job from its id, its overrides and its last state.
    """

    def __init__(self, folder: str, tasks: int, outcome: Outcome):
        super().__init__(delay_s=EVERY)
        self.folder, self.tasks, self.outcome = folder, tasks, outcome
        self._state: dict[str, str] = {}  # each job's last state in the queue
        self._since: dict[str, float] = {}  # time at which each job was first seen as ended
        self._values: dict[str, Any] = {}  # return values of jobs that left no result

    def ended(self, jobs: Iterable[str], queue: Mapping[str, str], now: float) -> dict[str, str]:
        """Return {job: state} of the jobs that have ended for good.

        ``queue``: the queue's {job: state}, which was read at ``now`` seconds.

        A job that was never seen in the queue (another cluster's, a hidden one) is left out.
        """
        over = {}
        for job in jobs:
            state = queue.get(job, self._final_state(job))
            self._state[job] = state
            if state not in (*ENDED, GONE):
                self._since.pop(job, None)
            elif now - self._since.setdefault(job, now) >= PATIENCE:
                over[job] = state.replace("_", " ").lower()
        return over

    def _final_state(self, job: str) -> str:
        """Return the state of a job that is not in the queue: its last one if final, else `GONE`.

        It is `UNSEEN` if the job was never in the queue.
        """
        last = self._state.get(job, UNSEEN)
        if last in (*ENDED, UNSEEN):
            return last
        return GONE

    def update(self) -> None:
        """Query the queue and mark ended jobs, for which submitit then stops waiting."""
        self._num_calls += 1
        waiting = self._registered - self._finished
        without = {job for job in waiting if self._tasks_without_result(job)}
        for job in waiting - without:
            self._mark_ended(job)
        self._last_status_check = time.time()
        if not without:
            return
        queue = query_queue()
        if queue is None:
            return
        for job, state in self.ended(without, queue, time.monotonic()).items():
            try:
                self._write_outcome(job, state)
            # The disk may be full. Try again at the next query.
            except (OSError, StorageError) as error:
                log.warning("SLURM job %s ended without a result (%s): %s", job, state, error)
            else:
                self._mark_ended(job)

    def _mark_ended(self, job: str) -> None:
        """Make submitit stop waiting for a job."""
        self._info_dict[job] = {"State": "COMPLETED"}  # all its tasks have result files
        self._finished.add(job)

    def _tasks_without_result(self, job: str) -> list[JobPaths]:
        """Return a job's tasks without a result file; listing the folder refreshes NFS's cache."""
        tasks = [JobPaths(self.folder, job, task) for task in range(self.tasks)]
        try:
            there = set(os.listdir(tasks[0].folder))
        except OSError:
            there = set()
        return [paths for paths in tasks if paths.result_pickle.name not in there]

    def _write_outcome(self, job: str, state: str) -> None:
        """Write the result that ``outcome`` returns for a job to its tasks without a result."""
        missing = self._tasks_without_result(job)
        if not missing:
            return
        overrides: list[str] = DelayedSubmission.load(missing[0].submitted_pickle).args[0]
        if job not in self._values:  # call it once, even if writing fails repeatedly
            self._values[job] = self.outcome(job, overrides, state)
        value = self._values[job]
        completed = JobStatus.COMPLETED
        result = JobReturn(overrides=overrides, status=completed, _return_value=value)
        for paths in missing:
            write_atomic(paths.result_pickle, cloudpickle.dumps(("success", result)))


def watch_queue(launcher: Mapping[str, Any], outcome: Outcome) -> None:
    """Detect this process's SLURM jobs that have ended without a result, by querying the queue.

    ``outcome(job, overrides, state)`` is called once for each of them; its return value is the
    run's result for the sweeper.
    """
    tasks = int(launcher["nodes"]) * max(1, int(launcher["tasks_per_node"]))
    SlurmJob.watcher = QueueWatcher(str(launcher["submitit_folder"]), tasks, outcome)
