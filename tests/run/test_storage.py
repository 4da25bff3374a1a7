"""Storage that gives out: one line, nothing complete lost; the same command goes on when there is room."""

import json
import os
import shutil
import subprocess

import pytest
from PIL import Image

from tests.run.accidents import at_call, stopped
from tests.run.commands import command, end, problems, start, wait_for
from tests.run.test_kill import descendants, kill, words
from triptych.errors import StorageError, UserError
from triptych.run.directory import write_atomic
from triptych.run.execute import execute


@pytest.fixture
def small(tmp_path):
    """``small("8m")``: a file system of that size; skipped where none can be mounted."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(size: str):
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
            pytest.skip("mounting a small tmpfs needs root and its permission")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def folder_of_images(root, n: int):
    images = root / "images"
    images.mkdir()
    for i in range(n):
        Image.new("L", (8, 8), 30 * i % 256).save(images / f"{i}.png")
    return images


def fill(path, leave: int) -> None:
    found = os.statvfs(path)
    (path / "ballast").write_bytes(b"0" * max(0, found.f_bavail * found.f_frsize - leave))


def wait_for_a_checkpoint(process: subprocess.Popen, folder) -> None:
    wait_for(lambda: list(folder.rglob("last.ckpt")), process)


def test_a_full_disk_leaves_the_old_file(small):
    place = small("1m")
    target = place / "checkpoint"
    write_atomic(target, b"old")
    with pytest.raises(StorageError, match="No space left on device"):
        write_atomic(target, b"1" * 2**21)
    assert target.read_bytes() == b"old" and [p.name for p in place.iterdir()] == ["checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize("leave", [250_000, 20_000], ids=["no room for a checkpoint", "nor for a row"])
def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(small, root, leave):
    place = small("8m")
    long = ["trainer.max_steps=400", "trainer.val_check_interval=20"]
    line = command("name=mine", *long, f"paths.log_dir={place}")
    process = start(line, root)
    folder = place / "runs" / "mine"
    wait_for_a_checkpoint(process, folder)
    fill(place, leave)
    _, said = process.communicate(timeout=900)
    lines = problems(said)
    assert process.returncode == 74 and len(lines) == 1, said
    assert lines[0].startswith("error: ") and "No space left on device" in lines[0]
    assert not (folder / "summary.json").exists() and not list(folder.rglob(".*.tmp"))
    (place / "ballast").unlink()
    for again in (line, command("name=twin", *long)):
        end(again, root)
    ours, theirs = (json.loads((p / "summary.json").read_text()) for p in (folder, root / "logs/runs/twin"))
    assert ours["test"] == theirs["test"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_read_only_disk_and_a_typed_command(small, root):
    """One line and 74; what is finished there is shown."""
    place = small("8m")
    here = f"paths.log_dir={place}"
    finished = command("-m", "name=s", "seed=1,2", here)
    end(finished, root)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    for line in (finished, command("-m", "name=t", "seed=1,2", here), command("name=n", here)):
        done = end(line, root, code=74)
        [said] = done.stderr.splitlines()
        assert said.startswith("error: ") and "Read-only file system" in said
        assert ("2 seeds" in done.stdout) == (line is finished), done.stdout


def test_data_that_is_broken_is_named_and_tried_again(prepared, root):
    """It is in memory while a run lasts; one that starts or goes on later says what is wrong."""
    images = folder_of_images(root, 40)
    data = ("data=folder", f"data.root={images}", "data.size=8", "data.channels=1", "data.batch_size=4")
    broken = images / "5.png"
    whole = broken.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 2, lambda: broken.write_bytes(whole[:20]))
        assert execute(prepared(*data, path="going"))["status"] == "finished"
    with pytest.raises(UserError, match=r"5\.png"):
        execute(prepared(*data))
    broken.write_bytes(whole)
    run = stopped(prepared(*data))
    broken.write_bytes(whole[:20])
    kept = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"5\.png"):
        execute(run)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == kept
    broken.write_bytes(whole)
    assert execute(prepared(*data, "retry=true"))["status"] == "finished"


@pytest.mark.slow
def test_a_killed_wandb_process_takes_nothing_with_it(root):
    line = command("name=mine", "trainer.max_steps=3000", "trainer.val_check_interval=300")
    process = start([a.replace("logger=csv", "logger=wandb") for a in line], root)
    wait_for_a_checkpoint(process, root)
    service = [pid for pid in descendants(process.pid) if "wandb" in words(pid)]
    assert service
    kill(service)
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 0 and "test bound" in said, errors
    lines = problems(errors)
    assert len(lines) == 1 and lines[0].startswith("W&B is left out from here on (")
    assert lines[0].endswith("metrics.csv has the figures")
