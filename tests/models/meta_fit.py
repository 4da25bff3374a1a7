"""A fit on the ``meta`` device, which has no numbers, and what would wait for a device in it."""

import traceback
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from triptych.data.batch import Batch
from triptych.run.stopping import NEVER

META = torch.device("meta")
aten = torch.ops.aten
# Operators whose result the CPU needs: its value, or a size that follows from values.
READS = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
    aten.histc,
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Calls that make a tensor of numbers in Python: its copy to a device is waited for.
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor}


class Waits(TorchDispatchMode):
    """Record what would wait for a device, or leave it, while ``watching``.

    A read or a copy to the CPU gives zeros, so that a fit continues where values are needed, as at
    logged steps. A whole number that is read is that of ``Stop`` for "no bad loss".
    """

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.count = 0  # operators seen while watching
        self.waits: list[str] = []
        self._calls = _Calls(self)

    def __enter__(self) -> "Waits":
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def note(self, wait: str) -> None:
        if self.watching:
            self.waits.append(f"{wait} at {_place()}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += self.watching
        packet = func.overloadpacket
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reads = packet in READS or (packet in INDEXED and _masked(args[1]))
        if reads and any(tensor.device == META for tensor in inputs):
            self.note(str(func))
        if packet is aten._local_scalar_dense and args[0].device == META:
            return 0.0 if args[0].is_floating_point() else NEVER
        if packet is aten._to_copy and _leaves(args[0], kwargs):
            self.note(str(func))
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # The batch comes from the CPU, by copies that are not waited for.
        if packet is aten._to_copy and kwargs.get("non_blocking") and result.device == META:
            return result
        if any(tensor.device != META for tensor in [*inputs, *outputs]):
            self.note(f"{func} elsewhere")
        return result


class _Calls(TorchFunctionMode):
    """Note calls that no operator shows: tensors made of numbers, and ``tolist``."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FROM_NUMBERS or func in (Tensor.tolist, Tensor.numpy):
            self.waits.note(func.__name__)
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """Return the innermost lines of the stack that are not torch's own or of this file."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-4:-1])


def _leaves(tensor: Tensor, options: Any) -> bool:
    device = options.get("device")
    return tensor.device == META and device is not None and device != META


def _masked(index: Any) -> bool:
    return any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in index)


class Repeated:
    """A loader that gives one batch over and over."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self.batch)


class MetaAccelerator(CPUAccelerator):
    """Lightning's accelerator of a CPU, which accepts the device."""

    def setup_device(self, device: torch.device) -> None:
        pass


class Enough(Exception):
    """The end of a fit after the watched steps."""


class Watch(pl.Callback):
    """Watch the steps from ``first`` to ``last``, with all between them; then end the fit."""

    def __init__(self, waits: Waits, first: int, last: int):
        self.waits, self.first, self.last = waits, first, last

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        step = trainer.global_step + 1
        if step == self.first:
            self.waits.watching = True
        if step > self.last:
            self.waits.watching = False
            raise Enough
