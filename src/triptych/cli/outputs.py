"""Check that a command's output can be written, before slow work begins."""

import os
from collections.abc import Iterable
from pathlib import Path

from triptych.errors import StorageError, UserError
from triptych.files import STORAGE, check_outside_of_records


def check_output_file(key: str, path: str) -> None:
    """Raise UserError or StorageError unless the file can be written."""
    place = Path(path).absolute()
    check_outside_of_records(key, path, place)
    if place.is_symlink() or (place.exists() and not place.is_file()):
        raise UserError(f"{key}={path}: not a regular file; choose another place")
    check_first_writable(key, path, place.parents)


def check_output_folder(key: str, path: str) -> None:
    """Raise UserError or StorageError unless files can be written in this folder."""
    place = Path(path).absolute()
    check_outside_of_records(key, path, place / "samples")
    check_first_writable(key, path, [place, *place.parents])


def check_first_writable(key: str, path: str, folders: Iterable[Path]) -> None:
    """Check, with a temporary folder, that the first of ``folders`` that exists is writable."""
    probe = next(folder for folder in folders if folder.exists()) / f".{os.getpid()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        kind = StorageError if error.errno in STORAGE else UserError
        raise kind(f"{key}={path}: cannot be written ({error.strerror})") from error
