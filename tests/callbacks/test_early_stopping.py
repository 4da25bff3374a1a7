"""Early stopping by the validation bound's one name, across a stop and a resumed run."""

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from tests.run.accidents import rows
from triptych.callbacks.early_stopping import EarlyStopping
from triptych.callbacks.metrics import Metrics
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.run.execute import execute

RING = ("data=ring", "denoiser=mlp", "data.test_size=50", "data.train_size=500", "data.val_size=50")
# Steps that leave all weights as they are, so the validation bound is the same each time.
STILL = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "samples.n=0", "test=false")
OFTEN = ("trainer.max_steps=40", "trainer.val_check_interval=2")


def trainer(**figures: float):
    metrics = {name.replace("_", "/"): torch.tensor(value) for name, value in figures.items()}
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    return SimpleNamespace(
        callback_metrics=metrics, should_stop=False, sanity_checking=False, fast_dev_run=False,
        current_epoch=0, strategy=strategy, state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # fmt: skip


def test_early_stopping_counts_patience_with_min_delta():
    """For 5, 4, 3.95, 3.85, 3.8 and min_delta 0.1 the fourth counts as lower, the fifth not."""
    callback, waited = EarlyStopping(patience=2, min_delta=0.1), []
    for value in (5.0, 4.0, 3.95, 3.85, 3.8):
        now = trainer(val_bound=value)
        callback.on_validation_end(now, None)
        waited.append(callback.wait_count)
        assert not now.should_stop
    assert waited == [0, 0, 1, 0, 1]
    callback.on_validation_end(now := trainer(val_bound=3.84), None)
    assert now.should_stop
    again = EarlyStopping(patience=2, min_delta=0.1)
    again.load_state_dict(callback.state_dict())
    old = EarlyStopping(patience=2, min_delta=0.1)
    old.load_state_dict({"best": 3.85, "waited": 2})  # of an earlier version
    assert (old.wait_count, old.best_score) == (again.wait_count, again.best_score)
    assert again.wait_count == 2 and float(again.best_score) == pytest.approx(3.85)


@pytest.mark.parametrize("monitor", ["val/accuracy", "val/mine"])
def test_monitor_refuses_metric_where_higher_is_better(monitor):
    now = trainer()
    now.callbacks = [Metrics({"mine": SimpleNamespace(higher_is_better=True)})]
    with pytest.raises(
        UserError, match=f"monitor={monitor}: higher is better, but this callback needs"
    ):
        EarlyStopping(monitor).on_train_start(now, None)
    EarlyStopping().on_train_start(now, None)


OURS = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2")
LIGHTNINGS = [f"+callbacks.mine.{key}" for key in ("monitor=val/bound", "patience=2")]
LIGHTNINGS += ["+callbacks.mine._target_=pytorch_lightning.callbacks.EarlyStopping"]


def resumed_after_its_fit(run, monkeypatch, edit=lambda callbacks: None):
    def killed(*_, **__):
        raise RuntimeError("an accident")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="an accident"):
        patch.setattr("triptych.run.training.choose_weights", killed)
        execute(run)
    (run / "summary.json").unlink()
    checkpoint = torch.load(last := run / "checkpoints" / "last.ckpt", weights_only=True)
    edit(checkpoint["callbacks"])
    torch.save(checkpoint, last)
    return execute(run)


def test_checkpoint_without_stopped_flag_does_not_train_after_early_stop(prepared, monkeypatch):
    run = prepared(*RING, *STILL, *OFTEN, *OURS, path="a")
    edit = lambda callbacks: callbacks["Keep"].pop("stopped")  # noqa: E731
    assert resumed_after_its_fit(run, monkeypatch, edit)["steps"] == 6


@pytest.mark.parametrize("stopping", [OURS, LIGHTNINGS], ids=["ours", "lightning's"])
def test_resume_after_early_stop_does_not_train(prepared, monkeypatch, stopping):
    """The bound is in nats. The first validation is the lowest; it waits for two more."""
    run = prepared(*RING, *STILL, *OFTEN, *stopping, path="a")
    assert resumed_after_its_fit(run, monkeypatch)["steps"] == 6
    table = [row for row in rows(run) if row["val/bound"]]
    assert [row["step"] for row in table] == ["2", "4", "6"]
    for row in table:
        assert row["val/nats_per_dim"] == row["val/bound"] and math.isfinite(
            float(row["val/bound"])
        )


def test_should_stop_after_saved_step_survives_resume(prepared, monkeypatch):
    def stop(model, *_):
        model.trainer.should_stop = model.global_step == 2

    monkeypatch.setattr(
        BoundModel, "on_train_batch_end", stop
    )  # Lightning calls it after all callbacks
    run = prepared(*RING, *STILL, *OFTEN, "data.val_size=0", "test=true", path="a")
    assert resumed_after_its_fit(run, monkeypatch)["steps"] == 2
