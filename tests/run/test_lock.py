"""One process at a time works in a directory, even if the file system has no locks."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from triptych.errors import Busy
from triptych.run.directory import RunDirectory
from triptych.run.processes import FALLBACK_LOCK, describe_process

WITHOUT = """
import fcntl, os, sys, time
def flock(*_):
    raise OSError({number}, os.strerror({number}))
fcntl.flock = flock
from triptych.run.directory import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""

NONE = (errno.EOPNOTSUPP, errno.ENOSYS)


@pytest.fixture(params=[0, *NONE])
def no_flock(monkeypatch, request):
    """The error of a file system without flock, as of some Lustre and NFS; 0 for one with it."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_run_directory_lock_is_exclusive(tmp_path, no_flock):
    run = RunDirectory(tmp_path)
    refused = pytest.raises(Busy, match=rf"another process is using it \(.* pid {os.getpid()}\)")
    with run.lock():
        assert run.holder() == describe_process() and (tmp_path / FALLBACK_LOCK).exists() == bool(
            no_flock
        )
        with refused, run.lock():
            pass
    assert run.holder() is None and not (tmp_path / FALLBACK_LOCK).exists()
    with run.lock():
        pass


@pytest.mark.parametrize("no_flock", NONE, indirect=True)
def test_lock_of_killed_owner_is_released_without_flock(tmp_path, no_flock):
    run, line = (
        RunDirectory(tmp_path),
        [sys.executable, "-c", WITHOUT.format(number=no_flock), str(tmp_path)],
    )
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"pid {process.pid}"), run.lock():
        pass
    process.kill()
    process.wait()
    assert run.holder() is None
    with run.lock():
        pass


def test_lock_waiter_recreates_discarded_directory(tmp_path):
    """The lock that a process waits for is removed with its directory, and protects nothing."""
    run, written = RunDirectory(tmp_path / "run"), []

    def wait():
        with run.lock(timeout=20.0):
            run.write("x.json", {})
            written.append(True)

    with run.lock():
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        run.discard()
    waiting.join(timeout=30)
    assert written and (run / "x.json").exists()


def test_discard_removes_folders_of_the_runs_loggers(root):
    run = RunDirectory(root / "logs" / "runs" / "one")
    run.write("config.yaml", {})
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "debug.log").write_text("")
    (run / "wandb" / "latest-run").symlink_to("run-1")
    run.discard()
    assert not [*root.iterdir()]


def test_discard_removes_empty_parent_folders(root):
    """Folders of other runs stay, and so does the user's folder above."""
    runs = [RunDirectory(root / "logs" / "runs" / name) for name in ("one", "two")]
    for run in runs:
        run.write("provenance.json", {})
    runs[0].discard()
    assert not runs[0].path.exists() and runs[1].path.exists()
    runs[1].discard()
    assert root.exists() and not [*root.iterdir()]
