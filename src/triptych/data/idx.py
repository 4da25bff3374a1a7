"""The idx format of MNIST and its kin, plain or gzipped, read without torchvision."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.errors import DataError
from triptych.files import open_regular
from triptych.limits import limit

if TYPE_CHECKING:
    import numpy as np


def find_idx(folder: Path, stem: str) -> Path | None:
    """Return `folder/stem` or `folder/stem.gz`, or None; the plain file first, as it is quicker to read."""
    return next((f for f in (folder / stem, folder / f"{stem}.gz") if f.is_file()), None)


def read_idx(file: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of `dims` dimensions in an idx file; DataError naming a file that is none.

    Header: 0, 0, 8 (= uint8), dims, then each dimension as a big-endian uint32.
    """
    most = limit("TRIPTYCH_MAX_DATA")
    data = _read(file, most + 1)
    if len(data) > most:
        raise DataError(
            f"data.root: {file} unpacks to more than {most} bytes; TRIPTYCH_MAX_DATA=... raises the limit"
        )
    shape = _header(file, data, dims)
    _check_size(file, shape, len(data))
    import numpy as np  # not for who only checks a configuration

    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_header(file: Path, dims: int) -> tuple[int, ...]:
    """Return the shape that an idx file says it has; DataError as `read_idx`."""
    shape = _header(file, _read(file, 4 + 4 * dims), dims)
    _check_size(file, shape, None if file.suffix == ".gz" else file.stat().st_size)
    return shape


def _read(file: Path, most: int) -> bytes:
    """Read at most so many bytes of a file, unpacked."""
    try:
        with open_regular(file) as raw, gzip.open(raw) if file.suffix == ".gz" else raw as stream:
            return stream.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.root: cannot read {file}: {error}") from error


def _check_size(file: Path, shape: tuple[int, ...], size: int | None) -> None:
    """Raise DataError for no items, or if the ``size`` in bytes is known and not what ``shape`` needs."""
    needed = 4 + 4 * len(shape) + math.prod(shape)
    if min(shape) < 1 or size not in (None, needed):
        has = "" if size is None else f", it has {size}"
        raise DataError(f"data.root: {file} is damaged: {shape} items need {needed} bytes{has}")


def _header(file: Path, data: bytes, dims: int) -> tuple[int, ...]:
    head = 4 + 4 * dims
    if data[:4] != bytes([0, 0, 8, dims]) or len(data) < head:
        raise DataError(
            f"data.root: {file} is no idx file of {dims} dimensions of bytes:"
            f" needs the first bytes 000008{dims:02x}, has {data[:4].hex() or 'none'};"
            f" {len(data)} bytes in all"
        )
    return struct.unpack_from(f">{dims}I", data, 4)
