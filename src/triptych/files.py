"""Read untrusted files safely: regular files, in directories without links that lead out.

Control characters in the text of these files are escaped. A reader of a run's directory first calls
``check_directory``, and opens files with ``open_regular``. docs/security.md has the guarantees.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from triptych.errors import StorageError, Unreadable, UserError
from triptych.terminal import escape_control_characters

# Errors of the storage, not of the program: disk full, permissions, quotas, limits, lost disks.
STORAGE_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.EISDIR, errno.ENOTDIR),  # a directory in a file's place, or the reverse
)
RUN_RECORDS = ("config.yaml", "provenance.json", "summary.json", "items.npz")
SWEEP_FILES = ("multirun.yaml", "report.html", "results.csv")


def parse_path(text: str, key: str) -> Path:
    """Convert a typed path; raise UserError for "", which would mean the current directory."""
    if not text:
        raise UserError(f"{key}: an empty path; type a name, or . for the current directory")
    return Path(text)


def holds_run_records(folder: Path) -> bool:
    """Return whether a directory has at least two of the files that every run writes.

    A single one, such as config.yaml, is not sufficient, as other programs write such files too.
    """
    return sum((folder / name).exists() for name in RUN_RECORDS) >= 2


def holds_sweep_records(folder: Path) -> bool:
    """Return whether a directory has ``sweep.json`` and another file that each sweep writes."""
    return (folder / "sweep.json").exists() and any(
        (folder / name).exists() for name in SWEEP_FILES
    )


def check_outside_of_records(key: str, path: object, output: Path) -> None:
    """Raise UserError if ``output`` lies in a run's or sweep's directory; ``key`` is its option."""
    for folder in output.resolve().parents:
        if holds_run_records(folder) or holds_sweep_records(folder):
            raise UserError(
                f"{key}={path}: lies in a run's or sweep's directory, {folder}; choose another "
                "place"
            )


def check_directory(folder: str | Path) -> None:
    """Raise UserError if a directory contains special files, or links that lead out of it.

    Special files are pipes, sockets and devices.
    """
    home = os.path.realpath(folder)
    for _, entries in walk(folder):
        for entry in entries:
            if entry.is_symlink():
                if os.path.commonpath([home, os.path.realpath(entry.path)]) != home:
                    raise UserError(
                        f"{entry.path}: symbolic link to a place outside the run's directory; put "
                        "the file itself there"
                    )
            elif not (entry.is_dir() or entry.is_file()):
                raise UserError(f"{entry.path}: not a regular file; remove it")


def walk(
    root: str | Path,
    follow_links: bool = False,
    on_error: Callable[[OSError], None] = lambda error: None,
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield each folder at or beneath ``root`` with its entries.

    With ``follow_links``, links to folders are followed. Folders that the caller removes from the
    yielded list are not entered. ``on_error`` is called with the error of a folder that cannot be
    read. os.walk is not used, as before Python 3.12 it is recursive and fails a thousand folders
    deep.
    """
    ahead = [Path(root)]
    for here in ahead:
        try:
            with os.scandir(here) as listing:
                entries = [*listing]
        except OSError as error:
            on_error(error)
            continue
        yield here, entries
        ahead += [
            here / entry.name for entry in entries if entry.is_dir(follow_symlinks=follow_links)
        ]


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert storage errors within the context, such as a full disk, to StorageError.

    The message names ``path``. Other errors are raised unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRNOS:
            raise
        raise StorageError(
            f"{path}: cannot be written ({os.strerror(error.errno)}); complete files are kept; "
            "repeat the same command to resume"
        ) from error


@contextlib.contextmanager
def atomic_replacement(path: Path, new: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing, and rename it to ``path`` at the end of the block.

    Raises OSError; in particular FileExistsError if ``new`` is true and ``path`` exists.
    """
    # The name is random, because processes of two containers may have the same id.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with contextlib.suppress(FileExistsError):  # If it is a file, opening raises ENOTDIR.
            path.parent.mkdir(parents=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            (os.link if new else os.replace)(part, path)
        except OSError as error:
            if not new or isinstance(error, FileExistsError):
                raise
            os.replace(part, path)  # the file system has no hard links
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises OSError for any other file, because reading a pipe would block.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path}: not a regular file")
    return open(path, "rb")


def load_tensors(path: str | Path) -> Any:
    """Load a file that ``torch.save`` has written, with all tensors on the CPU.

    Raises ValueError if it is damaged, or contains more than tensors and plain data.
    """
    import torch  # imported late, so that errors on the command line appear fast

    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as records:
                if records.testzip() is not None:  # torch does not check checksums
                    raise ValueError("a checksum in it does not match")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch may raise any error for such a file
        raise ValueError("damaged, truncated, or with more than tensors and plain data") from error


def read_json(path: str | Path) -> Any:
    """Parse a JSON file and escape control characters in its texts.

    Raises OSError or ValueError if the file cannot be read or is not JSON.
    """
    try:
        with open_regular(path) as file:
            return escape_control_characters(json.load(file))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_record(path: str | Path) -> dict[str, Any] | None:
    """Read a record of a run or sweep, a file with one JSON object; return None without a file.

    Raises Unreadable if the content is not a JSON object.
    """
    try:
        record = read_json(path)
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        # Use the system's message without its number and path.
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"{path}: cannot be read ({reason})") from error
    return record


def load_object(path: str | Path) -> dict[str, Any]:
    """Parse a JSON object from a file; return {} if the file is missing or invalid."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(path: str | Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, header first, up to the first row that cannot be read.

    Yield nothing if the file is missing or not regular.
    """
    try:
        with open_regular(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
            yield from csv.reader(text)
    except (OSError, csv.Error):
        return


def file_digest(path: str | Path) -> str | None:
    """Hash a regular file's content (BLAKE2b, 16 bytes, hexadecimal).

    Return None if there is no such file.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return None
