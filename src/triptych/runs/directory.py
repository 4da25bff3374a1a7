"""A run is its directory: what lies in it, who may work in it, how it is made.

config.yaml       the resolved configuration, plain
provenance.json   id, overrides, choices, command, git commit, packages, host
metrics.csv       one row per logged step
progress.json     where a running job is
summary.json      written once, at the end: the contract with every reader
checkpoints/ samples/ wandb/ train.log
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from triptych.errors import UserError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class RunDirectory:
    """One run's directory. Reading is tolerant, writing is atomic."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict:
        """The resolved configuration; UserError if this is no run's directory."""
        file = self / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path}: not a run's directory (it has no config.yaml)")
        try:
            return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]
        except Exception as error:
            raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from error

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
        try:
            value = json.loads((self / name).read_text())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory: one process group at a time. UserError names who holds it.

        The lock is the kernel's and ends with its owner, however that ends: none is ever stale.
        """
        import fcntl

        self.path.mkdir(parents=True, exist_ok=True)
        with open(self / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"{self.path}: another process is at work here ({file.read().strip()})"
                ) from None
            file.truncate(0)
            file.write(f"{socket.gethostname()} pid {os.getpid()}")
            file.flush()
            yield
