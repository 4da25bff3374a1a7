"""A bound on what a configuration from a file may have allocated when its model is built."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

CALLS = 10_000  # tensors that a model is made of, at most


class Budget(TorchFunctionMode):
    """Within it, new tensors are counted before they are made.

    Raises:
        MemoryError: they would take more than ``most`` bytes together, or there are too many of them.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most, self.left, self.calls = most, most, CALLS
        self.constructors = _device_constructors()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in self.constructors:
            about = {key: value for key, value in kwargs.items() if key not in ("generator", "pin_memory")}
            with torch._C.DisableTorchFunction():
                planned = function(*args, **(about | {"device": "meta"}))
            self.left -= planned.numel() * planned.element_size()
            self.calls -= 1
            if self.left < 0 or self.calls < 0:
                raise MemoryError(f"larger than its file: more than {self.most} bytes")
        return function(*args, **kwargs)
