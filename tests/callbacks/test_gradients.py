"""Gradient norms: counted as they are, the same after a resume; the scale of a loss decides nothing."""

import pytest
import torch

from tests.run.accidents import rows
from triptych.callbacks.gradients import Gradients
from triptych.diffusion.objective import Objective
from triptych.run.execute import execute


def counted(norms: list[float], clip: float | None = None) -> Gradients:
    gradients = Gradients(clip)
    for norm in norms:
        gradients._count(torch.tensor(norm))
    return gradients


def test_quantiles_are_those_of_the_norms_to_the_width_of_a_bin():
    norms = torch.exp(torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 2 + 3)
    found = counted(norms.tolist(), clip=20.0).figures()
    for name, share in (("p10", 0.1), ("median", 0.5), ("p90", 0.9)):
        # half a bin of 1/16 octave, three digits, and one order statistic
        assert found["norm"][name] == pytest.approx(
            float(norms.quantile(share)), rel=2 ** (1 / 32) - 1 + 0.01
        )
    assert found["norm"]["max"] == pytest.approx(float(norms.max()))
    assert found["clipped"] == pytest.approx(float((norms > 20).double().mean()))


def test_extreme_norms_are_counted_and_those_that_are_no_number_are_not():
    found = counted([0.0, 1e-30, 1e30, float("nan"), float("inf")]).figures()
    assert found["norm"]["max"] == pytest.approx(1e30) and found["clipped"] is None
    assert counted([float("nan")]).figures() is None and Gradients().figures() is None


def test_state_round_trips():
    gradients, other = counted([1.0, 2.0, 3.0], clip=1.5), Gradients(1.5)
    other.load_state_dict(gradients.state_dict())
    assert other.figures() == gradients.figures() and other.figures()["clipped"] == pytest.approx(2 / 3)


UNTESTED = ("objective=x0", "test=false", "samples.n=0")


def test_a_run_reports_its_norms_and_how_often_it_was_clipped(prepared, finished):
    free = execute(finished(*UNTESTED))["gradient"]
    assert free["clipped"] is None and free["norm"]["p10"] <= free["norm"]["median"] <= free["norm"]["max"]
    clip = free["norm"]["p10"] / 10  # below every norm of so short a run
    run = prepared(*UNTESTED, f"trainer.gradient_clip_val={clip}", path="clipped")
    clipped = execute(run)
    assert clipped["gradient"]["clipped"] == 1.0
    steps = [row for row in rows(run) if row["train/loss"]]
    assert len(steps) == 6 and {float(row["train/clipped"]) for row in steps} == {1.0}
    assert max(float(row["train/grad_norm"]) for row in steps) == pytest.approx(
        clipped["gradient"]["norm"]["max"], rel=1e-6
    )


def test_the_scale_of_a_loss_changes_no_bound(prepared, monkeypatch):
    """With the eps of ``optimizer=adamw`` no scale is known to it, and a power of two brings no rounding.

    A clip at norm 1 would act on one of the two runs alone.
    """
    factor, steps = 2.0**-14, ("trainer.max_steps=40", "trainer.val_check_interval=40", *UNTESTED)
    plain = execute(prepared(*steps, path="plain"))
    call = Objective.__call__

    def scaled(self, *args, **kwargs):
        loss = call(self, *args, **kwargs)
        return loss._replace(nats=factor * loss.nats)

    monkeypatch.setattr(Objective, "__call__", scaled)
    other = execute(prepared(*steps, path="scaled"))
    norms = [run["gradient"]["norm"]["median"] for run in (plain, other)]
    assert norms[1] == pytest.approx(factor * norms[0], rel=0.1)
    assert other["val"]["bpd"]["mean"] == pytest.approx(plain["val"]["bpd"]["mean"], rel=1e-5)


def test_settings_are_chosen_without_a_look_at_the_test_set(finished):
    summary = execute(finished(*UNTESTED))
    assert summary["status"] == "finished" and summary["val"]["bpd"]["n"] == 150
    assert "test" not in summary and "train" not in summary
