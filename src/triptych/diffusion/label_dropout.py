"""Labels left out in training, so that one network learns p(x | y) and p(x) (Ho & Salimans 2022, alg. 1)."""

import torch
from torch import Tensor

from .draws import Stream, seeded


def drop_labels(
    condition: Tensor, share: float, nobody: int, seed: int, step: int, rank: int = 0, world: int = 1
) -> Tensor:
    """``condition`` (B,) with each label replaced by ``nobody`` with probability ``share``.

    Which ones follows from (seed, step) and the place in the *global* batch, of which a process takes its
    slice, so a resumed run or another number of processes leaves out the same.
    """
    size = len(condition) * world
    u = torch.rand(size, generator=seeded(seed, Stream.LABELS, step))
    part = slice(rank * len(condition), (rank + 1) * len(condition))
    return torch.where(u[part].to(condition.device) < share, nobody, condition)
