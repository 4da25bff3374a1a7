"""A run is its directory: what lies in it, who may work in it, how it is made.

config.yaml       the resolved configuration, plain
provenance.json   id, overrides, choices, command, git commit, packages; where it was executed
metrics.csv       one row per logged step
progress.json     where a running job is
summary.json      written once, at the end: the contract with every reader
checkpoints/ averages/ samples/ wandb/ train.log
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.config.file import read_config
from triptych.errors import Busy, StorageError, UserError
from triptych.runs.plain import load
from triptych.runs.processes import owner

# The storage refuses, not the program: room, permission, quota.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

PRUNE = "prune"  # a file that asks a run to stop after its next validation


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: a temporary name, then rename.

    Raises:
        StorageError: no room, or no permission; what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        raise StorageError(
            f"{path}: cannot be written ({os.strerror(error.errno)}); what was complete before is kept, "
            "the same command goes on from there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class RunDirectory:
    """One run's directory. Reading is tolerant, writing is atomic."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict:
        """The resolved configuration, plain; UserError if this is no run's directory, or more than plain."""
        file = self / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path}: not a run's directory (it has no config.yaml)")
        return read_config(file)

    def provenance(self) -> dict:
        """What is known of where the run came from; empty if unknown."""
        return self._json("provenance.json") or {}

    def summary(self) -> dict | None:
        """The recorded result, or None: not there, or not readable."""
        return self._json("summary.json")

    @property
    def status(self) -> str:
        """ "new", "interrupted" (it has a beginning and no end), "finished" or "failed"."""
        summary = self.summary()
        if summary and summary.get("status") in ("finished", "failed"):
            return summary["status"]
        return "interrupted" if (self / "config.yaml").exists() else "new"

    def checkpoints(self) -> list[Path]:
        """Checkpoints that a run can go on from, newest first."""
        found = [p for p in (self / "checkpoints").glob("*.ckpt")]
        return sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True)

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, atomically."""
        write_atomic(self / name, json.dumps(value, indent=1, sort_keys=False) + "\n")

    def _json(self, name: str) -> dict | None:
        value = load(self / name)
        return value if isinstance(value, dict) else None

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the directory: one process group at a time, others wait ``patience`` seconds for it.

        The lock is the kernel's and ends with its owner, however that ends: none is ever stale.

        Raises:
            Busy: another process holds it; its owner is named.
            StorageError: the directory cannot be written.
        """
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self / ".lock", "a+")
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written ({os.strerror(error.errno or 0)})") from error
        with file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() < until:
                        time.sleep(0.05)
                        continue
                    file.seek(0)
                    who = file.read().strip() or "unknown"
                    raise Busy(f"{self.path}: another process is at work here ({who})") from None
            file.truncate(0)
            file.write(owner())
            file.flush()
            yield

    def holder(self) -> str | None:
        """Who is at work here at this moment; None if nobody is."""
        import fcntl

        try:
            file = open(self / ".lock")
        except OSError:
            return None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "unknown"
        return None

    def sweep_up(self) -> None:
        """Remove what a kill left half-written; for who holds the lock."""
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        (self / PRUNE).unlink(missing_ok=True)  # whoever starts it again wants it to go on
