"""Call a network on a large batch in pieces that fit in the memory of a GPU.

All samples of a chunk then take a step together and share its noise, so samples do not depend on
the memory but for rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .condition import Condition

PROBE = 8  # number of items on which the memory of an item is measured
# Share of the free memory that a piece may need: other runs of a sweep measure on the same GPU.
SHARE = 1 / 16


class Memory:
    """The memory of this process on GPUs: what is free, what a call needs, and the peak."""

    def __init__(self) -> None:
        self.earlier_peak = 0

    def free(self, device: torch.device) -> int:
        """Return the bytes that this process could still allocate."""
        unreserved, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(unreserved + cached)

    def needed(self, call: Callable[[], object], device: torch.device) -> int:
        """Return the bytes that a call allocates at most at a time."""
        self.earlier_peak = self.peak(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)

    def peak(self, device: torch.device) -> int:
        """Return the bytes that were allocated at most at a time, also before a measurement."""
        return max(self.earlier_peak, torch.cuda.max_memory_allocated(device))


GPU_MEMORY = Memory()


class Pieces:
    """Call a network on pieces of a batch; the memory of an item is measured once for a shape."""

    def __init__(self, memory: Memory = GPU_MEMORY):
        self.memory = memory
        self.sizes: dict[torch.Size, int] = {}

    def __call__(
        self, network: nn.Module, z: Tensor, gamma: Tensor, condition: Condition | None
    ) -> Tensor:
        """Return network(z, gamma, condition) of z (B, *event) and gamma (B,)."""

        def call(rows: slice) -> Tensor:
            part = None if condition is None else condition[rows]
            return network(z[rows], gamma[rows], part)  # type: ignore[no-any-return]  # a network's own

        if len(z) <= PROBE:
            return call(slice(None))
        event = z.shape[1:]
        if event not in self.sizes:
            needed = self.memory.needed(lambda: call(slice(PROBE)), z.device) / PROBE
            items = int(SHARE * self.memory.free(z.device) / max(1.0, needed))
            self.sizes[event] = max(PROBE, items)
        starts = range(0, len(z), self.sizes[event])
        parts = [call(slice(start, start + self.sizes[event])) for start in starts]
        return torch.cat(parts)
