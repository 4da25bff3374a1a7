"""Check that a command can write its output, before slow work begins."""

import os
from collections.abc import Iterable
from pathlib import Path

from triptych.errors import StorageError, UserError
from triptych.files import STORAGE_ERRNOS, check_outside_of_records


def check_output_file(key: str, path: str) -> None:
    """Raise UserError or StorageError if the file ``path`` (the option ``key``) is not writable."""
    place = Path(path).absolute()
    check_outside_of_records(key, path, place)
    if place.is_symlink() or (place.exists() and not place.is_file()):
        raise UserError(f"{key}={path}: not a regular file; choose another place")
    check_first_writable(key, path, place.parents)


def check_output_folder(key: str, path: str) -> None:
    """Raise UserError or StorageError if no files can be written in the folder ``path``."""
    place = Path(path).absolute()
    check_outside_of_records(key, path, place / "samples")
    check_first_writable(key, path, [place, *place.parents])


def check_first_writable(key: str, path: str, folders: Iterable[Path]) -> None:
    """Check that the first existing folder of ``folders`` is writable, by a temporary folder."""
    probe = next(folder for folder in folders if folder.exists()) / f".{os.getpid()}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        kind = StorageError if error.errno in STORAGE_ERRNOS else UserError
        raise kind(f"{key}={path}: cannot be written ({error.strerror})") from error
