"""Sets of items that processes read together, chunk by chunk, and that survive a kill.

A chunk holds about a million numbers and has its own generator, so a set is the same on any
number of processes. Only features of the items are kept, in files that the first process reads.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.data.order import rank_world
from triptych.diffusion.draws import mix
from triptych.diffusion.sampler import chunk_size
from triptych.errors import UserError
from triptych.run.checkpoints import read_tensors, save_checkpoint

FOLDER = "features"  # in a run's directory, until its result is recorded
_read = partial(read_tensors, kind="a chunk")


class Features:
    """Features of each item of a set, by name, with one file per chunk."""

    def __init__(self, chunks: Sequence[Path]):
        self.chunks = chunks

    def subset(self, rows: Tensor) -> "Features":
        """Return the features of the items ``rows`` (m,)."""
        return FeaturesOfSome(self.chunks, rows)

    def __getitem__(self, name: str) -> Tensor:
        """Read all features of one name, (n, ...), into memory."""
        return torch.cat([*self.parts(name)])

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield the features of ``self[name]``, one chunk at a time."""
        for path in self.chunks:
            yield _read(path)[name]


class FeaturesOfSome(Features):
    """Features of the items ``rows`` (m,) of a set, which ``parts`` yields in the set's order."""

    def __init__(self, chunks: Sequence[Path], rows: Tensor):
        super().__init__(chunks)
        self.rows = rows

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([*super().parts(name)])[self.rows]

    def parts(self, name: str) -> Iterator[Tensor]:
        start = 0
        for part in super().parts(name):
            inside = self.rows - start
            yield part[inside[(inside >= 0) & (inside < len(part))]]
            start += len(part)


class Chunks:
    """The chunks of all sets that a run measures, in a ``folder`` that its processes share.

    ``read``: items x (k, *shape) -> features, (k, ...) each. ``finite``: whether all items that
    were
    read here are finite.
    """

    def __init__(self, folder: Path, shape: Sequence[int], read: Callable[[Tensor], dict[str, Tensor]]):
        self.folder, self.size, self.read, self.finite = folder, chunk_size(shape), read, True
        self._turn = 0  # counts the chunks of all sets, as many sets have a single chunk
        self._rank, self._world = rank_world()

    def fill(self, name: str, n: int, items: Callable[[Tensor, int], Tensor]) -> Features:
        """Read this process's chunks of a set of n items, except those that are on disk already.

        ``items``: places in the set (k,) and the number of their chunk -> x (k, *shape).
        """
        paths = []
        for chunk, rows in enumerate(torch.arange(n).split(self.size)):
            path = self.folder / f"{name}_{chunk}.pt"
            paths.append(path)
            self._turn += 1
            if self._turn % self._world == self._rank:
                self._fill_chunk(path, chunk, rows, items)
        return Features(paths)

    def _fill_chunk(
        self, path: Path, chunk: int, rows: Tensor, items: Callable[[Tensor, int], Tensor]
    ) -> None:
        if not self.finite or _holds(path, len(rows)):
            return
        x = items(rows, chunk)
        self.finite = bool(x.isfinite().all())
        if self.finite:
            save_checkpoint(self.read(x), path)


def folder_of_chunks(run: Path, key: str) -> Path:
    """Return the folder of a run's chunks.

    The first process removes the chunks of another ``key``.
    """
    folder = run / FOLDER / key
    if rank_world()[0] == 0:
        for other in {*(run / FOLDER).glob("*")} - {folder}:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def chunk_seed(chunk: int, *numbers: int) -> int:
    """Mix ``numbers`` and the number of a chunk; the first chunk's seed is that of a whole set."""
    return mix(*numbers, chunk) if chunk else mix(*numbers)


def weights_digest(modules: Iterable[nn.Module], code: str) -> str:
    """Hash the names and values of all tensors of modules, and a description of their ``code``."""
    digest = hashlib.blake2b(code.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(content.numpy().data)
    return digest.hexdigest()


def _holds(path: Path, n: int) -> bool:
    """Return whether a valid chunk of n items is on disk."""
    if not path.exists():
        return False
    try:
        return all(len(x) == n for x in _read(path).values())
    except (UserError, TypeError, AttributeError):
        return False
