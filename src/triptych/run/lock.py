"""Lock a directory for one process: by the kernel or, on file systems without locks, filelock's file."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from triptych.errors import Busy, StorageError
from triptych.files import no_link, open_regular
from triptych.run.processes import owner

NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
INSTEAD = ".lock.owner"
_held: list[tuple[Path, IO[str]]] = []  # by this process


class Lockable:
    """A directory in which one process at a time works."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Lock the directory for one process group, waiting ``patience`` seconds; Busy names the owner."""
        folder, until = self.path, time.monotonic() + patience
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = open(folder / ".lock", "a+", opener=no_link)
            except OSError as error:
                why = os.strerror(error.errno or 0)
                raise StorageError(f"{folder}: cannot be written ({why})") from error
            with file, contextlib.ExitStack() as stack:
                while not _take(file, stack, folder):
                    if time.monotonic() > until:
                        file.seek(0)
                        who = file.read().strip() or "unknown"
                        raise Busy(f"{folder}: another process is at work here ({who})")
                    time.sleep(0.05)
                if not _lies_in(folder, file):
                    continue  # who held it has removed the directory, or put it aside
                file.truncate(0)
                file.write(owner())
                file.flush()
                _held.append((folder, file))
                try:
                    yield
                finally:
                    _held.remove((folder, file))
                return

    def holder(self) -> str | None:
        """Return the process that holds the lock now; None if there is none."""
        try:
            file = open_regular(self.path / ".lock")
        except OSError:
            return None
        with file, contextlib.ExitStack() as stack:
            if _take(file, stack, self.path, shared=True):
                return None
            return file.read().decode(errors="replace").strip() or "unknown"

    def leave(self) -> None:
        """Record that no process works here, unless one holds the lock."""
        if self.holder() is None:
            with contextlib.suppress(OSError):
                os.truncate(self.path / ".lock", 0)


def check_held(path: Path) -> None:
    """Raise StorageError if ``path`` lies in a directory whose lock this process has lost."""
    for folder, file in _held:
        if path.is_relative_to(folder) and not _lies_in(folder, file):
            raise StorageError(f"{folder}: moved or deleted while the run was at work there; the run ends")


def _lies_in(folder: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(folder / ".lock"))
    except OSError:
        return False


def _take(file: Any, stack: contextlib.ExitStack, folder: Path, shared: bool = False) -> bool:
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
    from filelock import SoftFileLock, Timeout

    try:
        stack.enter_context(SoftFileLock(folder / INSTEAD, timeout=0))
        return True
    except Timeout:
        return False
