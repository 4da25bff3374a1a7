"""A bound on what a configuration may have allocated when its model is built."""

import math
import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

CALLS = 10_000  # tensors that a model is made of, at most


def machine_memory() -> int:
    """Bytes of memory that this machine has; where the system does not tell, without end."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62


class Budget(TorchFunctionMode):
    """Within it, new tensors are counted before they are made.

    Args:
        most: bytes that they may take together.
        of: whose size that is, for the message.
        largest: bytes of a tensor that is allocated; larger ones have a shape and no memory.

    Raises:
        MemoryError: they would take more, or there are too many of them.
    """

    def __init__(self, most: int, of: str, largest: float = math.inf):
        super().__init__()
        self.most, self.left, self.of, self.calls = most, most, of, CALLS
        self.largest = largest
        self.constructors = _device_constructors()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in self.constructors:
            about = {key: value for key, value in kwargs.items() if key not in ("generator", "pin_memory")}
            with torch._C.DisableTorchFunction():
                try:
                    if function is torch.linspace:  # whose own plan imports a compiler, for seconds
                        planned = torch.empty(kwargs.get("steps", *args[2:3]), device="meta")
                    else:
                        planned = function(*args, **(about | {"device": "meta"}))
                except RuntimeError:  # a size that no integer counts
                    raise MemoryError(self._refusal("a tensor of 2^63 bytes or more")) from None
            self.left -= planned.numel() * planned.element_size()
            self.calls -= 1
            if self.left < 0:
                raise MemoryError(self._refusal(f"a tensor of {'x'.join(map(str, planned.shape))}"))
            if self.calls < 0:
                raise MemoryError(f"more than {CALLS} tensors; choose a smaller network")
            if planned.numel() * planned.element_size() > self.largest:
                return planned
        return function(*args, **kwargs)

    def _refusal(self, tensor: str) -> str:
        return f"needs more than {self.of}, {self.most / 2**30:.3g} GiB ({tensor}); choose a smaller network"
