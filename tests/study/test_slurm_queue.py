"""Which SLURM jobs have ended, by squeue's output: a stand-in for it, and submitit's own jobs."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJob

from triptych.errors import StorageError
from triptych.study import slurm


@pytest.mark.parametrize(
    "states, ended",
    [
        (["RUNNING", "CANCELLED", "CANCELLED", "CANCELLED"], "cancelled"),
        (["PENDING", "CANCELLED", "CANCELLED", ""], "cancelled"),  # forgotten after MinJobAge
        (["RUNNING", "", "", ""], "gone from the queue"),
        (["OUT_OF_MEMORY", "OUT_OF_MEMORY", "OUT_OF_MEMORY", "OUT_OF_MEMORY"], "out of memory"),
        (["RUNNING", "COMPLETING", "PENDING", "PENDING"], None),  # requeued
        (["RUNNING", "PREEMPTED", "PENDING", "RUNNING"], None),
        (
            ["CANCELLED", "CANCELLED", "PENDING", "CANCELLED"],
            None,
        ),  # and queued again: time starts anew
        (["", "RUNNING", "RUNNING", ""], None),  # gone at one look is not gone
        (["REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING"], None),
        (["", "", "", ""], None),  # never seen: of a cluster that squeue does not show
    ],
)
def test_queue_watcher_reports_end_after_repeated_looks(states, ended):
    watcher = slurm.QueueWatcher("jobs", 1, lambda *_: None)
    queues = [{"5_0": state} if state else {} for state in states]
    found = [watcher.ended(["5_0"], queue, now=15.0 * i) for i, queue in enumerate(queues)]
    assert found[:2] == [{}, {}]
    assert found[3] == ({"5_0": ended} if ended else {})


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Two jobs of two tasks each, as from submitit, a queue to fill, and the reported ends."""
    folder = f"{tmp_path}/.submitit/%j"
    state = SimpleNamespace(queue={"7_0": "RUNNING", "7_1": "PENDING"}, clock=0.0, told=[], asked=0)

    def ask():
        state.asked += 1
        state.clock += 15.0
        return state.queue

    def outcome(job, overrides, how):
        state.told.append((job, overrides, how))
        return 1.25

    monkeypatch.setattr(slurm, "query_queue", ask)
    monkeypatch.setattr(slurm.time, "monotonic", lambda: state.clock)
    monkeypatch.setattr(SlurmJob, "watcher", None)
    slurm.watch_queue({"nodes": 1, "tasks_per_node": 2, "submitit_folder": folder}, outcome)
    for i in range(2):
        paths = JobPaths(folder, f"7_{i}")
        paths.folder.mkdir(parents=True)
        DelayedSubmission(print, [f"seed={i}"], "hydra.sweep.dir", i).dump(paths.submitted_pickle)
    state.jobs = [SlurmJob(folder, f"7_{i}", tasks=(0, 1)) for i in range(2)]
    return state


def look(times: int) -> None:
    for _ in range(times):
        SlurmJob.watcher.update()


def test_cancelled_slurm_job_is_done_with_outcome(submitted):
    first, second = submitted.jobs
    assert not first.done(force_check=True) and not second.done()
    submitted.queue["7_0"] = "CANCELLED"
    look(3)
    assert first.done() and not second.done()
    assert [result.return_value for result in first.results()] == [1.25, 1.25]
    assert submitted.told == [("7_0", ["seed=0"], "cancelled")]
    submitted.queue = None  # SLURM does not answer: nothing is known
    look(5)
    assert not second.done()
    submitted.queue = {}
    look(3)
    assert second.done() and submitted.told[1:] == [("7_1", ["seed=1"], "gone from the queue")]
    asked = submitted.asked
    look(1)
    assert submitted.asked == asked  # no job is left to wait for


def test_slurm_task_keeps_result_it_has_written(submitted):
    job = submitted.jobs[0]
    assert not job.done(force_check=True)
    kept = JobPaths(SlurmJob.watcher.folder, "7_0", 1).result_pickle
    kept.write_bytes(b"its own")
    submitted.queue = {"7_0": "FAILED", "7_1": "RUNNING"}
    look(3)
    assert job.done() and kept.read_bytes() == b"its own"


def test_outcome_is_reported_once_and_written_when_disk_has_room(submitted, monkeypatch):
    job, write = submitted.jobs[0], slurm.write_atomic
    assert not job.done(force_check=True)
    submitted.queue["7_0"] = "NODE_FAIL"
    monkeypatch.setattr(
        slurm, "write_atomic", mock.Mock(side_effect=StorageError("cannot be written"))
    )
    look(4)
    assert not job.done() and submitted.told == [("7_0", ["seed=0"], "node fail")]
    monkeypatch.setattr(slurm, "write_atomic", write)
    look(1)
    assert job.done() and len(submitted.told) == 1


@pytest.mark.parametrize(
    "script, queue",
    [
        # The output of SLURM 24.11 for -o "%i %T"; the header is that of several clusters.
        (
            "printf 'CLUSTER: one\\n17_1 CANCELLED\\n18 FAILED\\n'",
            {"17_1": "CANCELLED", "18": "FAILED"},
        ),
        ("true", {}),
        (
            "echo 7_0 RUNNING; exit 1",
            None,
        ),  # slurm_load_jobs error: Unable to contact slurm controller
        ("echo 7_0 $SQUEUE_PARTITION", {}),  # the user's filters hide nothing
    ],
)
def test_ask_queue_parses_squeue_output(tmp_path, monkeypatch, script, queue):
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_PARTITION", "OTHER")
    assert slurm.query_queue() == queue


def test_ask_queue_without_squeue_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.query_queue() is None
