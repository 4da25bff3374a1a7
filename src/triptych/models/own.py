"""What a class of one's own must be, beyond the shapes of ``contract``: tried once, before the first step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from triptych.config.own_code import defined_at, is_own
from triptych.errors import UserError
from triptych.models.contract import PartOutput

TIMES = 100  # at which a schedule is looked at, between those of a table


def own_outputs(model: Any) -> Iterator[PartOutput]:
    """Check the parts of a model that are a user's classes; yield what has a shape to be checked.

    Raises:
        UserError: a part is not what the bound takes it for.
    """
    if is_own(schedule := getattr(model, "schedule", None)):
        _check_schedule(schedule)
    yield from ()


def _refuse(key: str, part: Any, breach: str) -> None:
    raise UserError(f"{key}: {type(part).__name__} {breach}{defined_at(type(part))}")


def _check_schedule(schedule: Any) -> None:
    """Refuse a gamma(t) that does not rise, and a slope, an inverse or ends that are not those of it."""
    one = copy.deepcopy(schedule).double().cpu()
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.618034) / TIMES
    gamma, slope, (low, high) = one.gamma(t), one.dgamma(t), one.gamma(t.new_tensor([0.0, 1.0])).tolist()
    step, close = (1e-6, 1e-3) if gamma.dtype == t.dtype else (1e-3, 0.02)  # some compute in float32
    rise = (one.gamma(t + step) - one.gamma(t - step)) / (2 * step)
    back, ends = one.t_of(gamma), t.new_tensor([low, high])
    must = t.new_tensor([getattr(one, "gamma_min", low), getattr(one, "gamma_max", high)])
    if any(p.requires_grad for p in one.parameters()):  # its ends may have been learned before
        must = ends
    for what, given, right, off in (
        ("the slope of gamma", rise, "above 0", (rise <= 0).double()),
        ("dgamma", slope, rise, (slope - rise) / (rise + 0.1 * (high - low)) / close),
        ("t_of(gamma)", back, t, (back - t) / close / 10),
        ("gamma", ends, must, (ends - must) / (high - low) / close),
    ):
        i = int(off.abs().argmax())
        if not off[i].abs() < 1:
            fix = right if isinstance(right, str) else f"{right[i]:.4g}"
            at = t[i] if len(off) == TIMES else i
            _refuse("schedule", schedule, f"at t={at:.3g}: {what} is {given[i]:.4g}; must be {fix}")
