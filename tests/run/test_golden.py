"""Figures of five short runs, so that no change moves them unnoticed.

They follow from one seed and 20 steps, and differ between machines by rounding alone. Whoever moves
them on purpose writes the new ones here, and says why in the changelog.
"""

import pytest
import torch

from triptych.run.execute import execute

STEPS = ("trainer.max_steps=20", "trainer.val_check_interval=20", "lr_schedule.warmup_steps=0")
ROUNDING = 2e-3  # relative: sums in another order, after 20 steps
GOLDEN = {  # objective: (bits per dimension of the test set, root mean square of four samples)
    "epsilon": (5.15808, 5.95043),
    "x0": (191.781, 0.546284),
    "v": (4.14987, 0.383881),
    "levels": (2.55171, 0.655815),
    "edm": (4.34062, 0.338775),
}


@pytest.mark.parametrize("objective", GOLDEN)
def test_figures_of_short_runs_have_not_moved(prepared, objective):
    process = ("process=edm",) if objective == "edm" else ()
    run = prepared(f"objective={objective}", *process, *STEPS)
    bound = execute(run)["test"]["bpd"]["mean"]
    samples = torch.load(run / "samples" / "final.pt", weights_only=True)["x"]
    figures = bound, samples.square().mean().sqrt().item()
    assert figures == pytest.approx(GOLDEN[objective], rel=ROUNDING)
