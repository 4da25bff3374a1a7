"""A run that is stopped anywhere and resumed ends bit for bit like an undisturbed run."""

import os
import shutil
import signal

import pytest
import torch

from tests.refusal import refused
from tests.run.accidents import Accident, at_call, stopped, stumble, table
from triptych.errors import ForeignCheckpoint
from triptych.run import directory
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.reopen import reopen
from triptych.run.result import Result
from triptych.run.untrusted import read_checkpoint

BASE = (
    "denoiser.network.dropout=0.3 trainer.val_check_interval=2 samples.n=0 "
    "callbacks.ema.others=[0.1] "
    "bound.repeats=1"
).split()
VARIANTS = {
    "plain": BASE,
    "accumulating": (*BASE, "trainer.accumulate_grad_batches=3"),
    "no validation": (*BASE, "data.val_size=0"),
    "best": (
        *BASE,
        "checkpoint=best",
        "optimizer.lr=0.5",
    ),  # gets worse, so that the best is an early one
    "ending between validations": (*BASE, "trainer.max_steps=7", "trainer.val_check_interval=3"),
    "importance": (
        *BASE,
        "objective/times=importance",
        "objective.steps=3",
        "objective.times.history=2",
    ),
    "adaptive": (*BASE, "objective/times=adaptive", "objective.times.bins=3"),
}
LEARNED = {"importance": "losses", "adaptive": "means"}  # of the losses, by the times of training


def same(one, other, first: Result, second: Result) -> None:
    for key in ("test", "val", "train", "noise_levels", "steps", "checkpoint", "weighting"):
        assert first.record.get(key) == second.record.get(key), key
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    torch.testing.assert_close(*(state["state_dict"] for state in states), rtol=0, atol=0)
    averages = [state["callbacks"]["EMA"] for state in states]
    assert averages[0]["updates"] == averages[1]["updates"] == first["steps"]
    for kept in ("average", "others"):
        assert averages[0][kept]
        torch.testing.assert_close(*(one[kept] for one in averages), rtol=0, atol=0)
    assert states[0]["callbacks"]["Keep"]["best"] == states[1]["callbacks"]["Keep"]["best"]
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]
    assert table(one) == table(other)


# Kills: before the first checkpoint, amid accumulated steps, after one, while it gets worse, after
# the last step.
ACCIDENTS = [
    ("plain", "training_step", 2),
    ("accumulating", "training_step", 8),
    ("no validation", "training_step", 4),
    ("best", "training_step", 6),
    ("ending between validations", "test_step", 1),
    *((variant, "training_step", 6) for variant in LEARNED),
]


@pytest.mark.parametrize(("variant", "method", "at"), ACCIDENTS)
def test_resume_after_error_matches_uninterrupted_run(
    prepared, finished, monkeypatch, variant, method, at
):
    extra = VARIANTS[variant]
    whole, broken = finished(*extra, path="whole"), prepared(*extra, path="broken")
    with monkeypatch.context() as patch:
        at_call(patch, method, at, stumble)
        with pytest.raises(Accident):
            execute(broken)
    assert broken.status == "failed" and "Accident" in broken.summary()["error"]
    assert "Accident" in (broken / "train.log").read_text()
    refused(lambda: prepared(*extra, path="broken"), "retry=true")
    if variant in LEARNED:
        state = read_checkpoint(broken / "checkpoints" / "last.ckpt")["state_dict"]
        assert state["times.seen"].sum() > 0 and state[f"times.{LEARNED[variant]}"].any()
    same(whole, broken, whole.summary(), execute(prepared(*extra, "retry=true", path="broken")))


@pytest.mark.parametrize(
    ("number", "variant", "at"),
    [
        (signal.SIGINT, "plain", 3),
        (signal.SIGTERM, "plain", 4),
        (signal.SIGUSR1, "accumulating", 8),
        pytest.param(signal.SIGTERM, "no validation", 5, marks=pytest.mark.slow),
    ],
)
def test_signal_saves_checkpoint_and_resumes_exactly(
    prepared, finished, capsys, number, variant, at
):
    extra = VARIANTS[variant]
    whole, broken = finished(*extra, path="whole"), prepared(*extra, path="broken")
    stopped(broken, at, number)
    assert broken.status == "interrupted"
    saved = {3: 3, 4: 2, 8: 3, 5: 5}[
        at
    ]  # the step under way is finished; a validation under way is not
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt")["global_step"] == saved
    reopen(str(broken.path))
    assert f"{broken.path}: training is not finished, at step {saved}\n" in capsys.readouterr().err
    same(whole, broken, whole.summary(), execute(broken))
    reopen(str(broken.path))
    assert "unfinished" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "writing", [2, 5, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, 8))]
)
def test_interrupted_write_keeps_previous_file(prepared, finished, monkeypatch, writing):
    """After a SIGKILL during a write, the temporary file is half-written and the old file whole."""
    whole, broken = finished(*BASE, path="whole"), prepared(*BASE, path="broken")
    calls = []

    def cut(source, target):
        calls.append(target)
        if len(calls) == writing:
            raise KeyboardInterrupt
        original(source, target)

    original = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(directory.os, "replace", cut)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            execute(broken)
    same(whole, broken, whole.summary(), execute(broken))


def test_temporary_files_are_removed_and_lost_summary_is_recomputed(finished):
    run = finished()
    first = run.summary()
    (run / "summary.json").unlink()
    (run / ".summary.json.123.tmp").write_text('{"schema": 1, "stat')
    (run / "checkpoints" / ".last.ckpt.123.tmp").write_bytes(b"half")
    assert run.status == "interrupted"
    assert execute(run)["test"] == first["test"]
    assert not list(run.path.rglob(".*.tmp"))


def test_newest_readable_checkpoint_is_chosen_by_step_not_mtime(finished):
    """File times may be wrong: a clock was set back, or a copy changed all of them."""
    run = finished()
    (run / "summary.json").unlink()  # of a finished run no other checkpoint is taken for its own
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    torch.save(read_checkpoint(last) | {"global_step": 2}, best)  # the best may be an early one
    for early, late in ((last, best), (best, last)):
        os.utime(early, (1e9, 1e9))
        os.utime(late, (2e9, 2e9))
        assert newest_readable(run.checkpoints()) == last
    torch.save(
        read_checkpoint(last), best
    )  # of one step: "last" is saved again if a callback ends the fit
    assert newest_readable(run.checkpoints()) == last
    last.write_bytes(last.read_bytes()[:-100])
    assert newest_readable(run.checkpoints()) == best


def test_foreign_checkpoint_error_leaves_no_summary(finished):
    """Then the run can resume once its configuration is restored, as the refusal says."""
    run = finished()
    first = run.summary()
    (run / "summary.json").unlink()
    config = (run / "config.yaml").read_text()
    run.write("config.yaml", run.config() | {"seed": 99})
    with pytest.raises(ForeignCheckpoint, match="put back the file that was replaced"):
        execute(RunDirectory(run.path))
    assert not (run / "summary.json").exists()
    (run / "config.yaml").write_text(config)
    assert execute(RunDirectory(run.path))["test"] == first["test"]


def test_checkpoint_in_run_directory_has_configuration_of_run(finished, tmp_path):
    """Machine settings changed after the last save, as by a resumed account, count everywhere."""
    run = finished()
    moved = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt")
    config = run.config()
    config["threads"], config["trainer"]["devices"] = 2, 3
    run.write("config.yaml", config)
    current = read_checkpoint(run / "checkpoints" / "last.ckpt")["triptych"]["config"]
    assert (current["threads"], current["trainer"]["devices"]) == (2, 3)
    assert read_checkpoint(moved)["triptych"]["config"]["threads"] == 1


def test_checkpoint_of_another_schema_is_not_overwritten(prepared):
    run = prepared()
    content = {"triptych": {"schema": 99, "config": {}}, "global_step": 3, "callbacks": {}}
    (run / "checkpoints").mkdir()
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    refused(lambda: execute(run), "written by another version of triptych")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_retry_that_cannot_be_built_leaves_recorded_divergence(prepared):
    lost = ("data=folder", "data.root=/nowhere")
    prepared(*lost).write(
        "summary.json", {"schema": 1, "status": "diverged", "error": "x", "step": 3}
    )
    run = prepared(*lost, "retry=true")
    refused(lambda: execute(run), "no such folder")
    assert run.status == "diverged"
