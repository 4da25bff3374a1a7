"""Data that change between two starts of a run are reported.

They are refused if items of training would be tested on.
"""

import shutil

import pytest
import torch
from PIL import Image

from tests.refusal import refused
from tests.run.accidents import stopped
from triptych.cli.evaluate import evaluate_composed
from triptych.cli.sample import sample
from triptych.config.compose import compose_command, without_hydra
from triptych.errors import UserError
from triptych.run.execute import execute
from triptych.run.untrusted import read_checkpoint

SMALL = ("data.size=8", "data.channels=1", "data.batch_size=8", "data.test_fraction=0.25", "bound.repeats=1",
         "samples.n=0", "callbacks.ema.others=[]")  # fmt: skip


def save(root, name: str, i: int) -> None:
    root.mkdir(exist_ok=True)
    image = Image.new("L", (8, 8), i)
    image.putpixel((i % 8, i // 8 % 8), 255 - i)
    image.save(root / name)


def rename(folder) -> None:
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"x{file.name}")


@pytest.fixture
def images(root):
    for i in range(40):
        save(root / "images", f"{i:02d}.png", i)
    return root / "images"


def overrides(images, *more: str) -> list[str]:
    return ["data=folder", f"data.root='{images}'", *SMALL, *more]


def test_resume_is_refused_if_trained_items_are_in_test(images, prepared):
    run = stopped(prepared(*overrides(images)))
    rename(images)
    refused(lambda: execute(run), "the model was trained on", "force=true to start over")
    # With the original data it resumes, without retry=true.
    for file in sorted(images.iterdir()):
        file.rename(images / file.name[1:])
    summary = execute(prepared(*overrides(images)))
    assert summary["status"] == "finished" and not summary["data"]["changed"]


def test_resume_with_added_images_is_reported_and_recorded(images, prepared, capsys):
    run = stopped(prepared(*overrides(images)))
    before = run.provenance.record["data"]
    trained = read_checkpoint(run.checkpoints()[0])["triptych"]["data"]["items"]["train"]
    for i in range(41, 60):
        save(images, f"{i}.png", i)
    capsys.readouterr()
    summary = execute(run)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data:")]
    assert "changed since this model was trained" in said
    assert said in (run / "train.log").read_text()
    assert summary["data"]["changed"] and summary["data"]["fingerprint"] != before["fingerprint"]
    # The record keeps the items that it was trained on before the change.
    now = read_checkpoint(run / "checkpoints" / "last.ckpt")["triptych"]["data"]["items"]["train"]
    assert torch.isin(trained, now).all() and len(now) > len(trained)


@pytest.mark.parametrize("finished", [False, True])
def test_moved_data_are_accepted_and_other_data_refused(images, prepared, root, finished):
    run = prepared(*overrides(images))
    if finished:
        execute(run)
    else:
        stopped(run)
    for name in ("moved", "other"):
        shutil.copytree(images, root / name, copy_function=shutil.copy)  # with times of its own
    save(root / "other", "03.png", 99)
    with pytest.raises(
        UserError, match=r"holds another run \(data.root: .*/images' -> '.*/other'\)"
    ):
        prepared(*overrides(root / "other"))
    shutil.rmtree(images)
    again = prepared(*overrides(root / "moved"))
    assert again.status == ("finished" if finished else "interrupted")
    if not finished:
        assert execute(again)["status"] == "finished"
        assert again.config()["data"]["root"] == str(root / "moved")


def opened(door: str, *arguments: str):
    """Run a command with ``arguments`` in this process."""
    asked = without_hydra(compose_command(door, arguments))
    return evaluate_composed(asked) if door == "evaluate" else sample(asked)


def test_commands_that_reopen_a_run_report_changed_data(images, prepared, root, capsys):
    execute(run := prepared(*overrides(images), path="source"))
    told = f"trained='{run.path}'"
    assert execute(prepared(told, path="fine"))["data"] == run.summary()["data"]
    ckpt = f"ckpt='{run / 'checkpoints' / 'last.ckpt'}'"
    moved = root / "moved"
    shutil.copytree(images, moved, copy_function=shutil.copy)
    capsys.readouterr()
    assert opened("evaluate", ckpt, f"data_root='{moved}'") == run.summary()["test"]
    assert "data:" not in capsys.readouterr().err
    save(moved, "41.png", 41)
    opened("evaluate", ckpt, f"data_root='{moved}'")
    assert capsys.readouterr().err.count("data: changed since this model was trained") == 1
    rename(moved)
    with pytest.raises(UserError, match="the model was trained on .* test items"):
        opened("evaluate", ckpt, f"data_root='{moved}'")
    few = ("n=2", "batch_size=2", "sampler.steps=2", f"out='{root / 'drawn'}'")
    opened("sample", ckpt, f"data_root='{moved}'", *few)  # nothing is judged
    assert capsys.readouterr().err.count("data: changed since this model was trained") == 1
    rename(images)
    refused(lambda: execute(prepared(told, path="mixed")), "the model was trained on")


def test_checkpoint_without_data_fingerprint_is_accepted(images, prepared):
    run = stopped(prepared(*overrides(images)))
    for path in run.checkpoints():
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["triptych"]["data"]
        torch.save(checkpoint, path)
    record = run.provenance.record
    del record["data"]
    run.write("provenance.json", record)
    assert execute(run)["status"] == "finished"
