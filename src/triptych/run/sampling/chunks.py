"""Sets of items, chunk by chunk: processes share the chunks, and what is read of each outlives a kill.

A chunk holds about a million numbers and draws from a generator of its own, so samples are the same on any
number of processes. Only features are kept, in files that the first process measures.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.order import rank_world
from triptych.diffusion.draws import mix
from triptych.diffusion.sampler import chunk_size
from triptych.errors import UserError
from triptych.run.checkpoints import read_tensors, save_checkpoint

FOLDER = "features"  # of a run's directory, until its result is recorded
_read = partial(read_tensors, kind="a chunk")


class Features:
    """What was read of each item of a set, by name; of the items ``rows`` (m,) of it, None for all."""

    def __init__(self, chunks: Sequence[Path], rows: Tensor | None = None):
        self.chunks, self.rows = chunks, rows

    def subset(self, rows: Tensor) -> "Features":
        return Features(self.chunks, rows)

    def __getitem__(self, name: str) -> Tensor:
        """Read all of one name, (n, ...), into memory."""
        whole = torch.cat([_read(path)[name] for path in self.chunks])
        return whole if self.rows is None else whole[self.rows]

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield the same in the order of chunks, one at a time."""
        start = 0
        for path in self.chunks:
            part = _read(path)[name]
            here = torch.arange(len(part)) if self.rows is None else self.rows - start
            start += len(part)
            yield part[here[(here >= 0) & (here < len(part))]]


class Chunks:
    """The chunks of all sets that a run measures, in a ``folder`` that its processes share.

    ``read``: items x (k, *shape) -> features, (k, ...) each. ``finite``: whether all items read here were.
    """

    def __init__(self, folder: Path, shape: Sequence[int], read: Callable[[Tensor], dict[str, Tensor]]):
        self.folder, self.size, self.read, self.finite = folder, chunk_size(shape), read, True
        self._turn, (self._rank, self._world) = 0, rank_world()

    def fill(self, name: str, n: int, items: Callable[[Tensor, int], Tensor]) -> Features:
        """Read this process's chunks of a set of n items, but those that are on disk.

        ``items``: places in the set (k,) and the number of their chunk -> x (k, *shape).
        """
        paths = []
        for chunk, rows in enumerate(torch.arange(n).split(self.size)):
            paths.append(path := self.folder / f"{name}_{chunk}.pt")
            self._turn += 1  # over all sets, as many have a single chunk
            if self._turn % self._world == self._rank and self.finite and not _holds(path, len(rows)):
                x = items(rows, chunk)
                self.finite = bool(x.isfinite().all())
                if self.finite:
                    save_checkpoint(self.read(x), path)
        return Features(paths)


def folder_of_chunks(run: Path, key: str) -> Path:
    """Return the folder of a run's chunks, those of another ``key`` removed by its first process."""
    for folder in (run / FOLDER).glob("*") if rank_world()[0] == 0 else ():
        if folder.name != key:
            shutil.rmtree(folder, ignore_errors=True)
    return run / FOLDER / key


def chunk_seed(chunk: int, *numbers: int) -> int:
    """Mix ``numbers`` and the number of a chunk; the first one's seed is that of a whole set."""
    return mix(*numbers, chunk) if chunk else mix(*numbers)


def weights_digest(modules: Iterable[Any], code: str) -> str:
    """Hash all tensors of modules, names and values, and what ``code`` they run under."""
    digest = hashlib.blake2b(code.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items() if isinstance(module, nn.Module) else ():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _holds(path: Path, n: int) -> bool:
    try:
        return path.exists() and all(len(x) == n for x in _read(path).values())
    except (UserError, TypeError, AttributeError):  # damaged
        return False
