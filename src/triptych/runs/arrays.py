"""Arrays from an ``.npz`` that anyone may have written: numbers in one dimension, as many as are there."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triptych.limits import limit

HEADER = 4096  # bytes of an array's own description, at most
KINDS = "fiu"  # floats and whole numbers


def read_arrays(file: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays ``names`` (n,), all of one length; None where the file is missing, broken or another kind.

    An array is read only if its claimed length is that of its bytes, and all of them together are below
    TRIPTYCH_MAX_ITEMS once unpacked. Nothing is unpickled.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [archive.getinfo(f"{name}.npy") for name in names]
            if sum(entry.file_size for entry in entries) > limit("TRIPTYCH_MAX_ITEMS"):
                return None
            found = {name: _read(archive, e) for name, e in zip(names, entries, strict=True)}
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds
        return None
    return found if len({len(array) for array in found.values()}) == 1 else None


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as stream:
        data = stream.read(entry.file_size + 1)  # what unpacks to more than it claims is broken
    if len(data) != entry.file_size:
        raise ValueError("damaged")
    head = io.BytesIO(data)
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head, max_header_size=HEADER)
    if dtype.kind not in KINDS or len(shape) != 1 or head.tell() + shape[0] * dtype.itemsize != len(data):
        raise ValueError("not an array of numbers of its own length")
    return np.frombuffer(data, dtype, offset=head.tell()).copy()
