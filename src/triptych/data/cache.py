"""Cache decoded images in a memory-mapped file, so that memory does not grow with the folder."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from triptych.config.identity import root
from triptych.errors import StorageError
from triptych.files import atomic_replacement

VERSION = 1  # version of the stored format, in the files' names


def cache_folder() -> Path:
    """Return the folder of decoded data: TRIPTYCH_CACHE, or else data/cache under ``root``.

    It cannot be configured, because a configuration may be untrusted.
    """
    return Path(os.environ.get("TRIPTYCH_CACHE") or Path(root()) / "data" / "cache").expanduser()


class MappedRows:
    """The rows ``order`` (n,) of an array (N, *shape) on disk; indexing reads them into memory."""

    def __init__(self, array: np.ndarray, order: np.ndarray) -> None:
        self.array, self.order = array, order

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> torch.Size:
        """(n, *shape)."""
        return torch.Size((len(self), *self.array.shape[1:]))

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = self.order[index if isinstance(index, slice) else index.numpy()]
        return torch.from_numpy(self.array[rows])


def cache_name(top: Path, files: Iterable[Path], *settings: object) -> str:
    """Return the name under which the decoded ``files`` in ``top`` are cached.

    The name changes if a file is changed or moved.
    """
    name = hashlib.blake2b(
        json.dumps([VERSION, str(top.resolve()), *settings]).encode(), digest_size=12
    )
    for file in files:
        facts = (top / file).stat()  # use ctime, too, as tar and rsync set mtime
        line = f"{file.as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}\n"
        name.update(line.encode("utf-8", "surrogateescape"))
    return name.hexdigest()


def cached_images(
    folder: Path, name: str, n: int, shape: tuple[int, ...], images: Iterable[np.ndarray]
) -> tuple[np.ndarray, Tensor]:
    """Return the cached images ``name`` of ``folder``, memory-mapped (n, *shape) uint8, and hashes.

    The second result is a hash of each image, int64 (n,). If the file does not exist, ``images``
    are decoded and written first, by one process. Raises StorageError if it cannot be written.
    """
    data, digests = folder / f"{name}.npy", folder / f"{name}.items.npy"

    def write() -> None:
        with _replaced_file(data) as file:
            # Do not write through a memory map, where a full disk would crash the process.
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
            np.lib.format.write_array_header_2_0(file, header)
            items = np.empty(n, np.int64)
            for i, image in enumerate(images):
                items[i] = item_number(image)
                file.write(np.ascontiguousarray(image, np.uint8).tobytes())
            # Write this file first, so that both are complete if the images' file exists.
            with _replaced_file(digests) as second:
                np.save(second, items)

    _write_once(data, write)
    array = np.load(data, mmap_mode="r", allow_pickle=False)
    return array, torch.from_numpy(np.load(digests, allow_pickle=False))


def cached_arrays(
    folder: Path, name: str, compute: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Return the cached arrays ``name`` of ``folder``.

    If there are none, one process calls ``compute``. Raises StorageError if they cannot be written.
    """
    file = folder / f"{name}.npz"

    def write() -> None:
        arrays = compute()
        with _replaced_file(file) as out:
            np.savez(out, *arrays)

    _write_once(file, write)
    with np.load(file, allow_pickle=False) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def item_number(*parts: np.ndarray) -> int:
    """Hash the bytes of an image, or of an item's parts, to one number."""
    whole = b"".join(part.tobytes() for part in parts)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "little", signed=True)


def _write_once(path: Path, write: Callable[[], None]) -> None:
    """Create a missing file: one process calls ``write``, and the others wait for it.

    The processes are the ranks that torchrun starts on a node, or the jobs of a sweep.
    """
    if path.exists():
        return
    with _file_lock(path):
        if not path.exists():
            write()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold a lock beside a file; the system releases it when a process is killed."""
    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        # Where locks are not possible, each process writes the file, which is replaced as a whole.
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock))
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


@contextmanager
def _replaced_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with atomic_replacement(path) as file:
            yield file
    except OSError as error:
        raise StorageError(
            f"{path.parent}: cannot be written ({error.strerror or error}); set another folder "
            "with TRIPTYCH_CACHE=..."
        ) from error
