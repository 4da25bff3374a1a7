"""What models that learned next to nothing need: the scale beside a bound in bits per dimension."""

import math
from typing import Any

import torch

from triptych.data.base import DataModule
from triptych.diffusion.reference import histogram

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
    bits = -histogram(train.batch(torch.arange(len(train))).x, levels, SMOOTHING).log2()
    k = ((test.batch(torch.arange(n)).x.flatten(1) + 1) * ((levels - 1) / 2)).round().long()
    each = bits.gather(1, k.T).mean(0)
    stderr = (each.std() / math.sqrt(n)).item() if n > 1 else 0.0
    return {
        "baselines": {
            "uniform": {"mean": math.log2(levels), "stderr": 0.0, "n": n},
            "histogram": {"mean": each.mean().item(), "stderr": stderr, "n": n},
        }
    }
