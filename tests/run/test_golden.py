"""Figures of five short runs, so that a change which moves them is not made unawares.

They follow from one seed and 20 steps, and differ between machines by rounding alone. Whoever moves
them on purpose writes the new ones here, and says why in the changelog.
"""

import pytest
import torch

from triptych.run.execute import execute

STEPS = ("trainer.max_steps=20", "trainer.val_check_interval=20", "lr_schedule.warmup_steps=0")
ROUNDING = 2e-3  # relative: sums in another order, after 20 steps
GOLDEN = {  # objective: (bits per dimension of the test set, root mean square of four samples)
    "epsilon": (0.0, 0.0),
    "x0": (0.0, 0.0),
    "v": (0.0, 0.0),
    "levels": (0.0, 0.0),
    "edm": (0.0, 0.0),
}


@pytest.mark.parametrize("objective", GOLDEN)
def test_figures_of_short_runs_have_not_moved(prepared, objective):
    process = ("process=edm",) if objective == "edm" else ()
    run = prepared(f"objective={objective}", *process, *STEPS)
    bound = execute(run)["test"]["bpd"]["mean"]
    samples = torch.load(run / "samples" / "final.pt", weights_only=True)["x"]
    figures = bound, samples.square().mean().sqrt().item()
    assert figures == pytest.approx(GOLDEN[objective], rel=ROUNDING)
