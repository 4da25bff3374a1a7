"""Gather the parts of a step's batch that the processes hold."""

import torch
from torch import Tensor
from torch import distributed as dist


def whole_batch(value: Tensor) -> Tensor:
    """Gather ``value`` (B / W, ...) from all W processes, in order: (B, ...) on each of them.

    The result has no gradient.
    """
    value = value.detach()
    if not (dist.is_available() and dist.is_initialized()):
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)
