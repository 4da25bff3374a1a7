"""What models that learned next to nothing need: the scale beside a bound in bits per dimension."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.data.batch import Split, to_level
from triptych.diffusion.reference import histogram

AT_ONCE = 1024  # items in memory
SMOOTHING = 1.0  # counts spread over the K levels of a dimension


def baselines(data: DataModule) -> dict[str, Any]:
    """{"baselines": {name: {"mean", "stderr", "n"}}} for ``summary.json``, bits/dim on the test set.

    "uniform": log2 K for every item. "histogram": each dimension's own frequencies of the K levels in the
    training split, (n_k + 1 / K) / (n + 1), one count in all being shared out so that no level is
    impossible. Empty for data without levels, or without test items.
    """
    if data.levels is None or not len(data.splits["test"]):
        return {}
    train, test = data.splits["train"], data.splits["test"]
    n, levels = len(test), data.levels
    bits = -histogram(_parts(train), levels, SMOOTHING).log2()
    each = torch.cat([_mean_of(bits, to_level(x, levels).flatten(1)) for x in _parts(test)])
    stderr = (each.std() / math.sqrt(n)).item() if n > 1 else 0.0
    return {
        "baselines": {
            "uniform": {"mean": math.log2(levels), "stderr": 0.0, "n": n},
            "histogram": {"mean": each.mean().item(), "stderr": stderr, "n": n},
        }
    }


def _parts(split: Split) -> Iterator[Tensor]:
    """The items of a split, some at a time."""
    for index in torch.arange(len(split)).split(AT_ONCE):
        yield split.batch(index).x


def _mean_of(bits: Tensor, k: Tensor) -> Tensor:
    """bits (d, K) at the levels k (n, d) of each item, their mean over dimensions, (n,)."""
    return bits.gather(1, k.T).mean(0)
