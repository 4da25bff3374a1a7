"""Failing storage: one line, no loss of complete files; the command resumes when there is room."""

import errno
import json
import os
import resource
import shutil
import subprocess

import pytest
from PIL import Image

from tests.refusal import refused
from tests.run.accidents import at_call, stopped
from tests.run.commands import command, end, problems, start, wait_for
from tests.run.test_kill import descendants, kill, words
from triptych.errors import StorageError
from triptych.run import processes
from triptych.run.directory import RunDirectory, write_atomic
from triptych.run.execute import execute


@pytest.fixture
def small(tmp_path):
    """Mount a file system of 8 MB; skip the test where this is not possible."""
    place = tmp_path / "small"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root and its permission")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def wait_for_a_checkpoint(process: subprocess.Popen, folder) -> None:
    wait_for(lambda: list(folder.rglob("last.ckpt")), process)


def test_lock_on_full_disk_is_storage_error(tmp_path, monkeypatch):
    """The lock's file exists, but there is no room for its content."""

    def full(number: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = RunDirectory(tmp_path / "run")
    with run.lock():
        pass
    monkeypatch.setattr(processes.os, "write", full)
    words = f"{run / '.lock'}: cannot be written (No space left on device)"
    refused(lambda: run.lock().__enter__(), words, error=StorageError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.ESTALE])
def test_write_atomic_on_failing_storage_keeps_old_file(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    write_atomic(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=os.strerror(number)):
        write_atomic(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old" and [*tmp_path.iterdir()] == [tmp_path / "x"]


def test_run_resumes_after_file_size_limit(prepared):
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


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another in its place"])
def test_run_does_not_write_after_directory_moved_or_deleted(tmp_path, again):
    """The directory was moved or deleted in the meantime."""
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        run.write("summary.json", {})
        run.path.rename(tmp_path / "aside")
        if again:
            run.path.mkdir()  # by whoever types the name again
            (run / ".lock").touch()
        for name in ("summary.json", "checkpoints/last.ckpt"):
            with pytest.raises(
                StorageError, match=r"run: moved or deleted while the run was using it"
            ):
                write_atomic(run / name, "")
    assert [p.name for p in run.path.iterdir()] == [".lock"] if again else not run.path.exists()
    with run.lock():  # the next process
        run.write("summary.json", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "leave", [250_000, 20_000], ids=["no room for a checkpoint", "nor for a row"]
)
def test_run_on_full_disk_stops_in_one_line_and_resumes(small, root, leave):
    long = ["trainer.max_steps=400", "trainer.val_check_interval=20"]
    line = command("name=mine", *long, f"paths.log_dir={small}")
    process = start(line, root)
    folder = small / "runs" / "mine"
    wait_for_a_checkpoint(process, folder)
    found = os.statvfs(small)
    (small / "ballast").write_bytes(b"0" * max(0, found.f_bavail * found.f_frsize - leave))
    _, said = process.communicate(timeout=900)
    lines = problems(said)
    assert process.returncode == 74 and len(lines) == 1, said
    assert lines[0].startswith("error: ") and "No space left on device" in lines[0]
    assert not (folder / "summary.json").exists() and not list(folder.rglob(".*.tmp"))
    (small / "ballast").unlink()
    for again in (line, command("name=twin", *long)):
        end(again, root)
    ours, theirs = (
        json.loads((p / "summary.json").read_text()) for p in (folder, root / "logs/runs/twin")
    )
    assert ours["test"] == theirs["test"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_on_read_only_disk_exits_with_74(small, root):
    """The command ends with one error line and code 74.

    A finished sweep's runs are still shown; only its report cannot be written, which is code 1.
    """
    here = f"paths.log_dir={small}"
    finished = command("-m", "name=s", "seed=1,2", here)
    end(finished, root)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    for line in (finished, command("-m", "name=t", "seed=1,2", here), command("name=n", here)):
        done = end(line, root, code=1 if line is finished else 74)
        *shown, said = done.stderr.splitlines()
        assert said.startswith("error: ") and "Read-only file system" in said
        results = [text for text in shown if "finished before, test bound" in text]
        assert len(results) == (2 if line is finished else 0) and "Traceback" not in done.stderr


def test_corrupt_data_file_is_named_and_run_can_be_retried(prepared, root):
    """Data stay in memory during a run; a later start reports that they are damaged."""
    images, broken = root / "images", root / "images" / "5.png"
    images.mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 30 * i % 256).save(images / f"{i}.png")
    data = (
        "data=folder",
        f"data.root={images}",
        "data.size=8",
        "data.channels=1",
        "data.batch_size=4",
    )
    whole = broken.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 2, lambda: broken.write_bytes(whole[:20]))
        assert execute(prepared(*data, path="going"))["status"] == "finished"
    refused(lambda: execute(prepared(*data)), "5.png")
    broken.write_bytes(whole)
    run = stopped(prepared(*data))
    broken.write_bytes(whole[:20])
    kept = (run / "checkpoints" / "last.ckpt").read_bytes()
    refused(lambda: execute(run), "5.png")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == kept
    broken.write_bytes(whole)
    assert execute(prepared(*data, "retry=true"))["status"] == "finished"


@pytest.mark.slow
def test_killed_wandb_process_does_not_stop_run(root):
    line = command("name=mine", "trainer.max_steps=3000", "trainer.val_check_interval=300")
    process = start([a.replace("logger=csv", "logger=wandb") for a in line], root)
    wait_for_a_checkpoint(process, root)
    service = [pid for pid in descendants(process.pid) if "wandb" in words(pid)]
    assert service
    kill(service)
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 0 and "test bound" in said, errors
    lines = problems(errors)
    assert len(lines) == 1 and lines[0].startswith("W&B: switched off (")
    assert lines[0].endswith("metrics.csv has all metrics")
