"""Compute features of sets of items in chunks, which are split over processes and stored.

Finished chunks survive a kill. A chunk holds about a million numbers, on a GPU four million, and
has its own random generator, so a set is the same for any number of processes. Only the features of
the items are stored; the process with rank 0 computes metrics from these files.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.data.order import rank_world
from triptych.diffusion.draws import hash_seed
from triptych.diffusion.sampler import chunk_size
from triptych.errors import UserError
from triptych.run.checkpoints import read_tensors, save_checkpoint

FOLDER = "features"  # folder in a run's directory; removed when the result is recorded
_read = partial(read_tensors, kind="a chunk")


class Features:
    """The features of a set of items, {name: tensor}, stored in one file per chunk of items."""

    def __init__(self, chunks: Sequence[Path]):
        self.chunks = chunks

    def subset(self, rows: Tensor) -> "Features":
        """Return the features of the items with indices ``rows`` (m,)."""
        return FeatureSubset(self.chunks, rows)

    def __getitem__(self, name: str) -> Tensor:
        """Read one feature of all items, (n, ...), into memory."""
        return torch.cat([*self.iterate_chunks(name)])

    def iterate_chunks(self, name: str) -> Iterator[Tensor]:
        """Yield one feature of all items, (k, ...) of a chunk at a time."""
        for path in self.chunks:
            yield _read(path)[name]


class FeatureSubset(Features):
    """The features of those items of a set that have the indices ``rows`` (m,).

    Indexing returns the items in the order of ``rows``; ``iterate_chunks`` yields them in the order
    of the chunks.
    """

    def __init__(self, chunks: Sequence[Path], rows: Tensor):
        super().__init__(chunks)
        self.rows = rows

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([*super().iterate_chunks(name)])[self.rows]

    def iterate_chunks(self, name: str) -> Iterator[Tensor]:
        start = 0
        for part in super().iterate_chunks(name):
            inside = self.rows - start
            yield part[inside[(inside >= 0) & (inside < len(part))]]
            start += len(part)


class Chunks:
    """The chunks of all sets that a run measures, in a ``folder`` that its processes share.

    ``read`` computes the features of items x (k, *shape), {name: (k, ...)}. ``finite`` is True
    until this process meets an item that is not finite.
    """

    def __init__(
        self,
        folder: Path,
        shape: Sequence[int],
        read: Callable[[Tensor], dict[str, Tensor]],
        device: torch.device | str = "cpu",
    ):
        self.folder, self.read, self.finite = folder, read, True
        self.size = chunk_size(shape, device)
        # Number of chunks of all sets so far, so that sets of one chunk are spread over processes.
        self._chunk_count = 0
        self._rank, self._world = rank_world()

    def fill(self, name: str, n: int, items: Callable[[Tensor, int], Tensor]) -> Features:
        """Compute and store this process's chunks of a set of n items, unless they are on disk.

        Return the features of the whole set. ``items`` is a function of indices in the set (k,) and
        the chunk's number, and returns x (k, *shape).
        """
        paths = []
        for chunk, rows in enumerate(torch.arange(n).split(self.size)):
            path = self.folder / f"{name}_{chunk}.pt"
            paths.append(path)
            self._chunk_count += 1
            if self._chunk_count % self._world == self._rank:
                self._fill_chunk(path, chunk, rows, items)
        return Features(paths)

    def _fill_chunk(
        self, path: Path, chunk: int, rows: Tensor, items: Callable[[Tensor, int], Tensor]
    ) -> None:
        """Compute and store one chunk, unless it is on disk or an item was not finite."""
        if not self.finite or _is_complete_chunk(path, len(rows)):
            return
        x = items(rows, chunk)
        self.finite = bool(x.isfinite().all())
        if self.finite:
            save_checkpoint(self.read(x), path)


def open_chunk_folder(run: Path, key: str) -> Path:
    """Return the folder of a run's chunks for ``key``, a digest; rank 0 removes other folders."""
    folder = run / FOLDER / key
    if rank_world()[0] == 0:
        for other in {*(run / FOLDER).glob("*")} - {folder}:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def chunk_seed(chunk: int, *numbers: int) -> int:
    """Return the random seed of a chunk, a hash of ``numbers`` and of the chunk's number.

    The number 0 is left out, so that a set of one chunk has the hash of ``numbers`` alone.
    """
    return hash_seed(*numbers, chunk) if chunk else hash_seed(*numbers)


def weights_digest(modules: Iterable[nn.Module], source_code: str) -> str:
    """Return a hash of all tensors of the modules, their names, and the text ``source_code``."""
    digest = hashlib.blake2b(source_code.encode(), digest_size=8)
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(content.numpy().data)
    return digest.hexdigest()


def _is_complete_chunk(path: Path, n: int) -> bool:
    """Return whether a readable chunk of n items is on disk."""
    try:
        return all(len(x) == n for x in _read(path).values())
    except (UserError, TypeError, AttributeError):
        return False
