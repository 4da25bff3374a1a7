"""A run is its directory: what lies in it, who may work in it, how it is made.

config.yaml       the resolved configuration, plain
provenance.json   id, overrides, choices, command, git commit, packages; where it was executed
metrics.csv       one row per logged step
progress.json     where a running job is
summary.json      written once, at the end: the contract with every reader
checkpoints/ averages/ samples/ wandb/ tensorboard/ mlflow.json profile/ train.log
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from triptych.config.file import read_config
from triptych.errors import StorageError, UserError
from triptych.files import check_directory, file_digest, no_link, printable, read_json_or_none
from triptych.run.lock import check_held, holder, leave, lock
from triptych.run.summary import ENDED, check_seal, seal

# The storage refuses, not the program: room, permission, quota, a limit; a disk or a server that is gone.
STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
)

REPORTED = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")  # of these, the one a run reports by
SEALED = ("items.npz", "metrics.csv")  # files that a finished run's summary has digests of
NO_CHECKPOINT = "no such file; a run's directory or a checkpoint in it, as checkpoints/last.ckpt, is accepted"
REFUSED = ".refused"  # a file: why a sweep's job could not have the directory, until the sweep has read it
BEGINNING = ("config.yaml", "provenance.json", "progress.json", "mlflow.json", ".launch", ".lock")
PRUNE = "prune"  # a file that asks a run to stop after its next validation


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that is ``path`` once it is whole: a temporary name, then rename.

    Raises:
        StorageError: no room, or no permission; what was there before is as it was. Or the directory is not
            the one any more that this process holds.
    """
    check_held(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=no_link) as file:
            yield file
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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing; errors as of ``atomic``."""
    with atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def checkpoint_at(path: str | Path) -> Path:
    """The file that ``path`` means: itself, or of a run's directory the checkpoint by which it reports.

    Raises:
        UserError: the directory holds what ``check_directory`` refuses.
    """
    run = RunDirectory(path)
    if not (run / "config.yaml").exists():
        return Path(path)
    check_directory(run.path)
    return run.reported()


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
        """The recorded result, or None: not there, not readable, or not as it was written."""
        record = self._json("summary.json")
        try:
            check_seal(record or {})
        except ValueError:
            return None
        return record

    @property
    def status(self) -> str:
        """ "new", "interrupted" (it has a beginning and no end), "finished", "failed" or "diverged"."""
        summary = self.summary()
        if summary and summary.get("status") in ENDED:
            return summary["status"]
        return "interrupted" if (self / "config.yaml").exists() else "new"

    def checkpoints(self) -> list[Path]:
        """Checkpoints that a run can go on from, in no order: a copy or a clock changes their times."""
        return sorted((self / "checkpoints").glob("*.ckpt"))

    def reported(self) -> Path:
        """The checkpoint by which the run reports, or will: its last, unless its summary names another.

        Raises:
            UserError: the summary names none of ``REPORTED``.
        """
        name = (self.summary() or {}).get("checkpoint", REPORTED[0])
        if name not in REPORTED:
            raise UserError(f"{self.path}: checkpoint {name!r}; one of {', '.join(REPORTED)} is accepted")
        return self / name

    def write_summary(self, record: dict[str, Any]) -> None:
        """Write ``summary.json``, with digests of what lies beside a finished result, and a checksum."""
        if record["status"] == "finished":
            found = {name: file_digest(self / name) for name in SEALED}
            record = record | {"digests": {name: value for name, value in found.items() if value}}
        self.write("summary.json", seal(printable(json.loads(to_json(record)))))

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as strict JSON, atomically; what is not finite is null."""
        write_atomic(self / name, to_json(value))

    def _json(self, name: str) -> dict | None:
        value = read_json_or_none(self / name)
        return value if isinstance(value, dict) else None

    def lock(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Hold the directory: one process group at a time, others wait ``patience`` seconds for it.

        Raises:
            Busy: another process holds it; its owner is named.
            StorageError: the directory cannot be written.
        """
        return lock(self.path, patience)

    def holder(self) -> str | None:
        """Who is at work here at this moment; None if nobody is."""
        return holder(self.path)

    def leave(self) -> None:
        """Say that nobody is at work here, unless somebody is."""
        leave(self.path)

    def discard(self) -> None:
        """Remove what a run wrote before its first step; nothing if it has a checkpoint or rows.

        Other files stay. Of a sweep's cell ``summary.json`` stays too, by which the sweep knows why it was
        refused. For who holds the lock.
        """
        if self.checkpoints() or (self / "metrics.csv").exists():
            return
        in_sweep = (self.path.parent / "sweep.json").exists()
        with contextlib.suppress(OSError):
            for folder in ("wandb", "tensorboard"):
                shutil.rmtree(self / folder, ignore_errors=True)
            for name in BEGINNING if in_sweep else (*BEGINNING, "summary.json"):
                (self / name).unlink(missing_ok=True)
            self.path.rmdir()

    def sweep_up(self) -> None:
        """Remove what a kill left half-written; for who holds the lock."""
        for leftover in (*self.path.rglob(".*.tmp"), *self.path.glob(".error-*.json")):
            leftover.unlink(missing_ok=True)
        (self / PRUNE).unlink(missing_ok=True)  # whoever starts it again wants it to go on


def to_json(value: Any) -> str:
    """Strict JSON, which has no word for what is not finite: null."""
    return json.dumps(_strict(value), indent=1, sort_keys=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return value
