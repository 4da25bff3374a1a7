"""On a GPU checkpoints are written by a thread; here it is chosen by hand."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.run.accidents import stop_after
from triptych.errors import StorageError
from triptych.run import checkpoints
from triptych.run.checkpoints import AtomicCheckpointIO
from triptych.run.directory import atomic, write_atomic
from triptych.run.execute import execute


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """An event for which each write waits, in any thread."""
    event = threading.Event()

    def wait_and_write(path, data):
        event.wait(60)
        write_atomic(path, data)

    monkeypatch.setattr(checkpoints, "write_atomic", wait_and_write)
    return event


def state(value: float) -> dict:
    return {"weights": torch.full((3,), value), "steps": [int(value)]}


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def test_training_goes_on_while_a_copy_is_written(tmp_path, gate):
    writer, path, content = AtomicCheckpointIO(background=True), tmp_path / "last.ckpt", state(1)
    writer.save_checkpoint(content, path)
    assert not path.exists()
    content["weights"].add_(1)
    content["steps"].append(2)
    gate.set()
    writer.wait()
    assert load(path)["weights"].tolist() == [1, 1, 1] and load(path)["steps"] == [1]


def test_files_are_written_one_at_a_time(tmp_path, monkeypatch):
    active, most = [], []

    def slow(path, data):
        active.append(path)
        most.append(len(active))
        time.sleep(0.05)
        write_atomic(path, data)
        active.remove(path)

    monkeypatch.setattr(checkpoints, "write_atomic", slow)
    writer = AtomicCheckpointIO(background=True)
    for value in range(4):
        writer.save_checkpoint(state(value), tmp_path / "best.ckpt")
    writer.teardown()
    assert most == [1] * 8  # the best checkpoint is the last one, too
    assert [load(tmp_path / name)["steps"] for name in ("best.ckpt", "last.ckpt")] == [[3], [3]]


@pytest.mark.parametrize("moment", ["save", "load", "end"])
def test_an_error_of_the_thread_is_raised_once(tmp_path, monkeypatch, moment):
    writer, path = AtomicCheckpointIO(background=True), tmp_path / "last.ckpt"
    writer.save_checkpoint(state(1), path)
    writer.wait()

    def fail(path, data):
        raise StorageError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomic", fail)
        writer.save_checkpoint(state(2), path)
        with pytest.raises(StorageError, match="no space"):
            if moment == "save":
                writer.save_checkpoint(state(3), path)
            elif moment == "load":
                writer.load_checkpoint(path)
            else:
                writer.teardown()
    assert load(path)["steps"] == [1], "the former checkpoint is whole"
    writer.save_checkpoint(state(4), path)
    writer.teardown()
    assert load(path)["steps"] == [4]


def end_within_a_write(path: Path) -> None:
    """Save a checkpoint, and end this process when half of the next one is written."""

    def half(path, data):
        with atomic(path) as file:
            file.write(data[: len(data) // 2])
            file.flush()
            (path.parent / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    writer = checkpoints.AtomicCheckpointIO(background=True)
    writer.save_checkpoint({"steps": [1]}, path)
    writer.wait()
    checkpoints.write_atomic = half
    writer.save_checkpoint({"steps": [2]}, path)
    time.sleep(60)


def test_a_kill_within_a_write_leaves_the_former_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(EOFError):
        forked.start_call(end_within_a_write, path)()
    assert (tmp_path / "half").exists() and load(path)["steps"] == [1]


def test_a_run_with_the_thread_equals_one_without(prepared, monkeypatch):
    few = ("samples.n=0", "bound.repeats=1")
    plain = prepared(*few, path="plain")
    expected = execute(plain)["test"]["bpd"]
    monkeypatch.setattr("triptych.run.trainer._uses_gpu", lambda _: True)
    run, threads, save = prepared(*few, path="threaded"), set(), checkpoints.save_checkpoint

    def watched(content, *paths):
        if paths[0].parent.name == "checkpoints":
            threads.add(threading.current_thread() is threading.main_thread())
        save(content, *paths)

    monkeypatch.setattr(checkpoints, "save_checkpoint", watched)
    stop_after(run, 4)
    assert load(run / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert execute(run)["test"]["bpd"] == expected and threads == {False}
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (load(folder / "checkpoints" / name) for folder in (plain, run))
        assert first.keys() == second.keys()
        assert all(map(torch.equal, first["state_dict"].values(), second["state_dict"].values()))
