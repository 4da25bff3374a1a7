"""A run whose directory is moved or deleted, and storage that refuses in other words than "full"."""

import errno
import os
import resource

import pytest

from triptych.errors import StorageError
from triptych.run.directory import RunDirectory, write_atomic
from triptych.run.execute import execute


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another in its place"])
def test_nothing_is_written_where_the_lock_is_another(tmp_path, again):
    run, aside = RunDirectory(tmp_path / "run"), tmp_path / "aside"
    with run.lock():
        run.write("summary.json", {})
        run.path.rename(aside)
        if again:
            run.path.mkdir()  # by whoever types the name again
            (run / ".lock").touch()
        for name in ("summary.json", "checkpoints/last.ckpt"):
            with pytest.raises(StorageError, match=r"run: moved or deleted while the run was at work there"):
                write_atomic(run / name, "")
    assert [p.name for p in run.path.iterdir()] == [".lock"] if again else not run.path.exists()
    with run.lock():  # the next process
        run.write("summary.json", {})


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ESTALE])
def test_storage_that_refuses_is_no_failure_of_the_run(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=os.strerror(number)):
        write_atomic(tmp_path / "x", "")
    assert not list(tmp_path.iterdir())


def test_a_file_size_limit_stops_a_run_that_goes_on_without_it(prepared):
    run = prepared()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            execute(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.status == "interrupted" and not list(run.path.rglob(".*.tmp"))
    assert execute(run)["status"] == "finished"
