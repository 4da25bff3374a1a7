"""What users of Lightning tell its trainer is done, or refused: never recorded and overridden."""

import io

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.profilers import SimpleProfiler

from triptych.callbacks.progress import Progress
from triptych.errors import UserError
from triptych.runs.directory import RunDirectory
from triptych.training.trainer import build_trainer


def test_a_profiler_writes_into_the_runs_directory(prepared):
    run = prepared("trainer.profiler=simple")
    trainer = build_trainer(run.config(), run, [], False)
    assert isinstance(trainer.profiler, SimpleProfiler)
    trainer.profiler.setup("fit", local_rank=0)
    with trainer.profiler.profile("a step of ours"):
        pass
    trainer.profiler.summary()
    trainer.profiler.describe()
    [file] = (run / "profile").iterdir()
    assert "a step of ours" in file.read_text()


def test_the_bar_can_be_turned_off(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    trainer = type("T", (), {"is_global_zero": True, "max_steps": 5, "global_step": 1})()
    for bar in (True, False):
        monkeypatch.setattr("sys.stderr", screen := Terminal())
        progress = Progress(RunDirectory(tmp_path), bar=bar)
        progress.on_train_start(trainer, None)
        progress.on_train_end(trainer, None)
        assert ("fit" in screen.getvalue()) == bar


def test_epochs_are_refused_and_the_key_that_decides_is_named():
    """At the door, by the declarations: nothing of Lightning's beyond them reaches its trainer."""
    from triptych.config.build import check_targets

    node = {"_target_": "pytorch_lightning.Trainer", "max_steps": 3, "max_epochs": 1}
    with pytest.raises(UserError, match=r"^trainer.max_epochs=1: .* no such argument, did you mean max_s"):
        check_targets(node, "trainer")
    assert "max_epochs" in Trainer.__init__.__wrapped__.__annotations__  # it is Lightning's
