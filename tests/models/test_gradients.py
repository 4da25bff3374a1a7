"""Gradient norms before clipping; the scale of a loss has no effect."""

import pytest
import torch

from tests.run.accidents import column, rows
from triptych.diffusion.objective import Objective
from triptych.models.base import BoundModel
from triptych.models.gradients import Gradients
from triptych.run.execute import execute
from triptych.run.untrusted import read_checkpoint

NORM = "train/grad_norm"
UNTESTED = ("objective=x0", "test=false", "samples.n=0")


def test_run_logs_grad_norm_and_clipped_share(prepared):
    free = prepared(*UNTESTED, path="free")
    execute(free)
    assert "train/clipped" not in rows(free)[0] and len(column(free, NORM)) == 6
    low, by_value = min(column(free, NORM)), "+trainer.gradient_clip_algorithm=value"
    for path, limit, share, *how in (
        ("clipped", low / 10, 1.0),
        ("never", 1e9, 0.0),
        ("no_element", low * 0.9, 0.0, by_value),
        ("an_element", low / 1e4, 1.0, by_value),
    ):
        run = prepared(*UNTESTED, f"trainer.gradient_clip_val={limit}", *how, path=path)
        execute(run)
        assert {*column(run, "train/clipped")} == {share}
        assert column(run, NORM)[0] == column(free, NORM)[0]  # before it is clipped


def test_weights_are_those_of_lightnings_clipping_with_one_norm_a_step(prepared, monkeypatch):
    runs = [prepared(*UNTESTED, "trainer.gradient_clip_val=0.01", path=p) for p in ("a", "b")]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", None)  # takes the norm itself
        execute(runs[0])
    monkeypatch.delattr(BoundModel, "configure_gradient_clipping")
    execute(runs[1])
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs)
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight)


def test_clipped_count_is_restored_from_state_dict():
    gradients, other = Gradients(1.5), Gradients(1.5)
    gradients.clipped += 2
    other.load_state_dict(gradients.state_dict())
    gradients.clipped += 1
    assert int(other.clipped) == 2


def test_the_scale_of_a_loss_changes_no_bound(prepared, monkeypatch):
    """Without the eps of ``optimizer=adamw``, scale has no effect; powers of two do not round.

    A clip at norm 1 would act on one of the two runs alone.
    """
    factor, steps = 2.0**-14, ("trainer.max_steps=40", "trainer.val_check_interval=40", *UNTESTED)
    runs = [prepared(*steps, path=path) for path in ("plain", "scaled")]
    plain = execute(runs[0])
    call = Objective.__call__

    def scaled(self, *args, **kwargs):
        loss = call(self, *args, **kwargs)
        return loss._replace(nats=factor * loss.nats)

    monkeypatch.setattr(Objective, "__call__", scaled)
    other = execute(runs[1])
    norms, scaled_norms = (column(run, NORM) for run in runs)
    assert scaled_norms == pytest.approx([factor * norm for norm in norms], rel=0.1)
    assert other["val"]["bpd"]["mean"] == pytest.approx(plain["val"]["bpd"]["mean"], rel=1e-5)


def test_test_false_reports_validation_bound_only(finished):
    summary = execute(finished(*UNTESTED))
    assert summary["status"] == "finished" and summary["val"]["bpd"]["n"] == 150
    assert "test" not in summary and "train" not in summary
