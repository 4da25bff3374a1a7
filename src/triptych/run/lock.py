"""One process at a time in a directory, on file systems with locks and on those without.

The kernel's lock ends with its owner, however that ends: none is ever stale. Where a file system has none
(some of Lustre's, NFS's and FUSE's), a file that only one can create stands for it. It says who made it, its
time is renewed while he lives, and it counts no more when its process is gone or has been silent for long.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from triptych.errors import Busy, StorageError
from triptych.files import no_link, open_regular
from triptych.run.processes import owner

NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
RENEWED, SILENT = 20.0, 300.0  # seconds between two signs of life; after which an owner elsewhere is gone
WRITTEN = 10.0  # seconds in which who has made the file has written into it
INSTEAD = ".lock.owner"
_held: list[tuple[Path, IO[str], str | None]] = []  # by this process; a token where the lock is ``INSTEAD``


@contextmanager
def lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold ``folder``; others wait ``patience`` seconds for it.

    Raises:
        Busy: another process holds it; its owner is named.
        StorageError: the directory cannot be written.
    """
    until = time.monotonic() + patience
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / ".lock", "a+", opener=no_link)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({os.strerror(error.errno or 0)})") from error
        with file:
            while (locked := _take(file)) is False:
                if time.monotonic() > until:
                    file.seek(0)
                    raise _busy(folder, file.read().strip())
                time.sleep(0.05)
            if not _lies_in(folder, file):
                continue  # who held it has removed the directory, or put it aside
            with contextlib.nullcontext() if locked else _instead(folder, until) as token:
                file.truncate(0)
                file.write(owner())
                file.flush()
                held = (folder, file, token)
                _held.append(held)
                try:
                    yield
                finally:
                    _held.remove(held)
                return


def check_held(path: Path) -> None:
    """Before ``path`` is written: StorageError if it lies in a directory that this process holds no more.

    One that was moved or deleted takes its lock along; another process may hold what has its name now. So it
    may without the kernel's lock, where this one was stopped for long.
    """
    for folder, file, token in _held:
        if not path.is_relative_to(folder):
            continue
        if not _lies_in(folder, file):
            raise StorageError(f"{folder}: moved or deleted while the run was at work there; the run ends")
        if token is not None and _read(folder / INSTEAD).get("token") != token:
            raise StorageError(f"{folder}: another process took over while this one slept; the run ends")


def _lies_in(folder: Path, file: IO[str]) -> bool:
    """Whether ``file`` is the lock of what is called ``folder`` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(folder / ".lock"))
    except OSError:
        return False


def holder(folder: Path) -> str | None:
    """The process that holds ``folder`` now; None if there is none."""
    try:
        file = open_regular(folder / ".lock")
    except OSError:
        return None
    with file:
        locked = _take(file, shared=True)
        if locked is False:
            return file.read().decode(errors="replace").strip() or "unknown"
    if locked is None and (record := _owner_of(folder / INSTEAD)) is not None:
        return str(record.get("owner") or "unknown")
    return None


def leave(folder: Path) -> None:
    """Say that nobody is at work in ``folder``, unless somebody is: who made it may live, and its job not."""
    if holder(folder) is None:
        with contextlib.suppress(OSError):
            os.truncate(folder / ".lock", 0)


def _busy(folder: Path, who: str) -> Busy:
    return Busy(f"{folder}: another process is at work here ({who or 'unknown'})")


def _take(file: Any, shared: bool = False) -> bool | None:
    """Whether the kernel's lock is ours now; None where the file system has none."""
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return None if error.errno in NO_LOCKS else False


@contextmanager
def _instead(folder: Path, until: float) -> Iterator[str]:
    """Hold ``folder`` by a file that only one process can create; the token in it."""
    path = folder / INSTEAD
    mine = {"owner": owner(), "host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
    mine["token"] = token = secrets.token_hex(8)
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            if (other := _owner_of(path)) is None:
                _put_away(path)
            elif time.monotonic() > until:
                raise _busy(folder, str(other.get("owner") or "")) from None
            else:
                time.sleep(0.05)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({os.strerror(error.errno or 0)})") from error
    with os.fdopen(handle, "w") as file:
        json.dump(mine, file)
    done = threading.Event()
    threading.Thread(target=_renew, args=(path, done), daemon=True).start()
    try:
        yield token
    finally:
        done.set()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def _owner_of(path: Path) -> dict | None:
    """The process that made the file and is still running, as far as is known; None if there is none."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return None
    record = _read(path)
    if record.get("host") == socket.gethostname():
        pid = record.get("pid")
        began = _began(pid) if isinstance(pid, int) else ""
        return record if began is not None and began == record.get("began") else None
    return record if age < (SILENT if "host" in record else WRITTEN) else None


def _put_away(path: Path) -> None:
    """Remove a file whose owner has ended; one that another process has made meanwhile is put back."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        os.rename(path, aside)
        if _owner_of(aside) is not None:
            os.link(aside, path)
        aside.unlink()


def _began(pid: int) -> str | None:
    """When a process of this machine began, so that a number used again is not taken for it; None: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except PermissionError:
        return ""
    except OSError:
        return None
    return ""


def _read(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(RENEWED):
        with contextlib.suppress(OSError):
            os.utime(path)
