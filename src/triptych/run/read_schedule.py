"""What a summary keeps of a schedule: its curve, and what one draw of the diffusion term is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from triptych.run.plain import number


@dataclass(frozen=True)
class ScheduleCurve:
    """gamma (minus log-SNR) at times t in [0, 1]."""

    t: tuple[float, ...]
    gamma: tuple[float, ...]


def read_schedule(record: Any) -> ScheduleCurve | None:
    """The curve; None where absent or malformed: a panel less, the run itself still counts."""
    if not isinstance(record, dict) or not all(isinstance(record.get(k), list) for k in ("t", "gamma")):
        return None
    t, gamma = (tuple(map(number, record[k])) for k in ("t", "gamma"))
    if not t or len(t) != len(gamma) or not all(map(math.isfinite, t + gamma)):
        return None
    return ScheduleCurve(t, gamma)


def read_variance(record: Any) -> float:
    """Variance of one draw of the diffusion term, nats^2 an item; NaN where it was not recorded."""
    return number(record.get("variance")) if isinstance(record, dict) else math.nan
