"""Call a network on a large batch in pieces that fit in the memory of a GPU.

All samples of a chunk still take each step together, with noise drawn at once for the chunk.
Samples therefore depend on the GPU's memory only by rounding errors.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .condition import Condition

PROBE = 8  # number of items of the call that measures the memory per item
# Share of the free memory that a piece may need. Other runs of a sweep use the same GPU.
SHARE = 1 / 16


class Memory:
    """The memory of this process on GPUs: the free memory, the need of a call, and the peak."""

    def __init__(self) -> None:
        self.earlier_peak = 0

    def free(self, device: torch.device) -> int:
        """Return the bytes that this process could still allocate."""
        unreserved, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(unreserved + cached)

    def needed(self, call: Callable[[], object], device: torch.device) -> int:
        """Return the peak of the bytes that a call allocates."""
        self.earlier_peak = self.peak(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)

    def peak(self, device: torch.device) -> int:
        """Return the process's peak of allocated bytes, which ``needed`` does not reset."""
        return max(self.earlier_peak, torch.cuda.max_memory_allocated(device))


GPU_MEMORY = Memory()


class Pieces:
    """Call a network on pieces of a batch; the memory per item is measured once for each shape."""

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
