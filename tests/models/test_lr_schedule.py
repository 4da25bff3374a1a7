"""Learning-rate factors over a run."""

import math
from collections import Counter

import pytest

from triptych.models.base import BoundModel
from triptych.models.lr_schedule import Constant, Cosine, InverseSqrt


def edm2(images: int, batch: int, ref_batches: float, ramp: float) -> float:
    """Karras et al. 2024: 1 / sqrt(max(t / t_ref, 1)) times a linear rise.

    The rise is over the first ``ramp`` images.
    """
    return min(images / ramp, 1) / math.sqrt(max(images / (ref_batches * batch), 1))


@pytest.mark.parametrize("step", [0, 40, 99, 100, 349, 350, 351, 1400, 100_000])
def test_inverse_sqrt_schedule_matches_edm2(step):
    ours = InverseSqrt(warmup_steps=99, reference_steps=350)
    rising = step < 100  # its first step is not at rate 0, and the last of the rise is 1
    images, ramp = (8 * (step + 1), 800) if rising else (8 * step, 1)
    expected = edm2(images, 8, 350, ramp)
    assert ours.factor(step, 10) == pytest.approx(expected)


def test_warmup_is_linear_and_cosine_ends_at_floor():
    assert [Constant(4).factor(step, 10) for step in (0, 1, 4, 9)] == pytest.approx(
        [0.2, 0.4, 1.0, 1.0]
    )
    assert [Cosine(2, 0.1).factor(step, 10) for step in (2, 6, 10)] == pytest.approx(
        [1.0, 0.55, 0.1]
    )


@pytest.mark.parametrize("milestones", [Counter([2, 4]), [2, 4]])
def test_checkpoint_holds_plain_milestones(milestones):
    state = {"milestones": milestones}
    BoundModel.on_save_checkpoint(None, {"lr_schedulers": [state]})
    assert state["milestones"] == ([2, 4] if milestones == [2, 4] else {2: 1, 4: 1})
    assert type(state["milestones"]) in (list, dict)
