"""A run is its directory: its files (docs/runs.md), its lock, its status."""

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from triptych.config.file import read_config
from triptych.errors import Unreadable, UserError, mask_password
from triptych.files import check_directory, file_digest, no_link, read_record, replaced, storage_errors, walk
from triptych.run.parsing import error_line
from triptych.run.processes import Lockable, check_held, rank
from triptych.run.provenance_file import Provenance
from triptych.run.result import Result, Status, seal
from triptych.terminal import printable

SCHEMA = 2  # version of the entry "triptych" of a checkpoint
LAST, BEST = "last.ckpt", "best.ckpt"
REPORTED = (f"checkpoints/{LAST}", f"checkpoints/{BEST}")  # a run reports one of these
# A finished run's summary has digests of these files; that of any other run of the first alone.
SEALED = ("config.yaml", "provenance.json", "items.npz", "metrics.csv", "samples/final.png")
NO_CHECKPOINT = "no such file; pass a run's directory or a checkpoint in it, as checkpoints/last.ckpt"
BEGINNING = ("config.yaml", "provenance.json", "progress.json", ".launch", ".lock")
ASIDE = re.compile(r"\.old-[0-9a-f]+$")  # ends the name under which an earlier run is kept
PRUNE = "prune"  # a file that asks a run to stop after its next validation


@contextlib.contextmanager
def atomic(path: Path, new: bool = False) -> Iterator[IO[bytes]]:
    """Open ``path`` for an atomic write, as ``replaced``.

    FileExistsError: with ``new``, a file of that name is there. StorageError: no room, no
    permission, a lost lock; the file is as it was before.
    """
    check_held(path)
    with storage_errors(path), replaced(path, new) as file:
        yield file


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically; errors as of ``atomic``."""
    with atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_end(path: Path, start: int, data: bytes) -> None:
    """Replace what follows the first ``start`` bytes of a file, in one call.

    StorageError as ``atomic``.

    If ``data`` begins with the bytes that it replaces, a kill at any moment loses none of them.
    """
    check_held(path)
    with storage_errors(path), open(path, "r+b", buffering=0, opener=no_link) as file:
        file.seek(start)
        while data:  # in one go but where the disk is full
            data = data[file.write(data) :]
        file.truncate()
        os.fsync(file.fileno())


def check_digests(folder: Path, digests: Mapping[str, str], names: Iterable[str] = SEALED) -> None:
    """Raise ValueError if a file beside a result does not match its digest.

    A missing file is no error.
    """
    for name in names:
        if name in digests and file_digest(folder / name) not in (digests[name], None):
            raise ValueError(f"{name}: damaged, or of another run")


def checkpoint_at(path: str | Path) -> Path:
    """Return the checkpoint at ``path``: a file, or the one that a run reports."""
    run = RunDirectory(path)
    if not (run / "config.yaml").exists():
        return Path(path)
    check_directory(run.path)
    return run.reported()


class RunDirectory(Lockable):
    """One run's directory. A record is read as a whole or refused, and written atomically."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration.

        UserError if this is no run directory, or it is not plain data.
        """
        file = self / "config.yaml"
        if not file.exists():
            raise UserError(f"{self.path}: not a run's directory (no config.yaml)")
        return read_config(file)

    @cached_property
    def provenance(self) -> Provenance:
        """The run's provenance, read once.

        An empty one if there is none. Unreadable: it is malformed.
        """
        return self._parse_provenance(read_record(self / "provenance.json") or {})

    def _parse_provenance(self, record: dict[str, Any]) -> Provenance:
        try:
            return Provenance.from_json(record)
        except ValueError as error:
            raise Unreadable(f"{self / 'provenance.json'}: {error_line(error)}") from error

    @property
    def readable_provenance(self) -> Provenance:
        """The provenance for what counts or names runs alone: an empty one if it is unreadable."""
        try:
            return self.provenance
        except Unreadable:
            return Provenance()

    def write_provenance(self, record: dict[str, Any]) -> None:
        """Write the provenance; Unreadable: it would be malformed, as by a planted checkpoint."""
        self.provenance = self._parse_provenance(record)
        self.write("provenance.json", record)

    def summary(self) -> Result | None:
        """Read the recorded result; None if there is none.

        Unreadable: it is of an unknown schema, damaged, altered, or ``config.yaml`` is not that of
        its run.
        """
        record = read_record(self / "summary.json")
        if record is None:
            return None
        try:
            result = Result.from_json(record)
            check_digests(self.path, result.digests, SEALED[:1])
        except ValueError as error:
            raise Unreadable(f"{self / 'summary.json'}: {error_line(error)}") from error
        return result

    def read_records(self) -> Result | None:
        """Read the records anew and return the result, if there is one.

        Unreadable: as ``summary``.
        """
        self.__dict__.pop("provenance", None)
        _ = self.provenance
        return self.summary()

    def clear_failure(self) -> None:
        """Remove the record of a failure, so that the run is tried again; a result stays."""
        result = self.summary()
        if result is not None and result.status != "finished":
            (self / "summary.json").unlink()

    def damage(self) -> str:
        """Return why there is a result that cannot be relied on, else ""."""
        try:
            self.summary()
        except Unreadable as error:
            return error.problem
        return ""

    @property
    def status(self) -> Status | Literal["new"]:
        """The result's status, or "unreadable", "interrupted" (begun without an end), "new"."""
        try:
            result = self.summary()
        except Unreadable:
            return "unreadable"
        if result is not None:
            return result.status
        if (self / "config.yaml").exists():
            return "interrupted"
        return "new"

    def figure(self, name: str) -> float | None:
        """Return a figure of the result by its path; None without a result that can be read."""
        try:
            result = self.summary()
        except Unreadable:
            return None
        return result.figure(name) if result else None

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints to resume from, by name: times change when files are copied."""
        return sorted((self / "checkpoints").glob("*.ckpt"))

    def reported(self) -> Path:
        """Return the reported checkpoint: the last, unless the summary names the best."""
        result = self.summary()
        if result is None or not result.checkpoint:
            return self / REPORTED[0]
        if result.checkpoint not in REPORTED:
            problem = f"checkpoint {result.checkpoint!r}: must be one of {', '.join(REPORTED)}"
            raise UserError(f"{self.path}: {problem}")
        return self / result.checkpoint

    def record(self, result: Result) -> Result:
        """Write the result with digests of the files beside it and a checksum, and return it."""
        names: tuple[str, ...] = SEALED[:1]
        if result.status == "finished":
            names = (*SEALED, *REPORTED)
        digests = {name: file_digest(self / name) for name in names}
        present = {name: digest for name, digest in digests.items() if digest}
        sealed = seal(printable(json.loads(to_json({**result.record, "digests": present}))))
        self.write("summary.json", sealed)
        return Result.from_json(sealed)

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as strict JSON, atomically."""
        write_atomic(self / name, to_json(value))

    def put_aside(self) -> str:
        """Rename the directory to make room for another run, and return its new name."""
        name = f"{self.path.name}.old-{secrets.token_hex(3)}"
        shutil.move(self.path, self.path.with_name(name))
        return name

    def discard(self) -> None:
        """Remove the files of a run that never began.

        A sweep's cell keeps the reason, ``summary.json``.

        The run that it had put aside takes its place again.
        """
        if self.checkpoints() or (self / "metrics.csv").exists():
            return
        aside = self.readable_provenance.aside
        files = [*BEGINNING]
        if aside or not (self.path.parent / "sweep.json").exists():
            files.append("summary.json")
        with contextlib.suppress(OSError):
            for folder in ("wandb", "tensorboard"):
                shutil.rmtree(self / folder, ignore_errors=True)
            for name in files:
                (self / name).unlink(missing_ok=True)
            self.path.rmdir()
            if ASIDE.sub("", aside) == self.path.name:  # It leads nowhere else.
                self.path.with_name(aside).rename(self.path)
            self._remove_empty_parents()

    def remove_empty(self) -> None:
        """Remove an empty directory, and empty parents named runs and logs; else OSError."""
        self.path.rmdir()
        self._remove_empty_parents()

    def _remove_empty_parents(self) -> None:
        runs, logs = self.path.parent, self.path.parent.parent
        if runs.name == "runs":  # no folder of the user's own
            runs.rmdir()
            if logs.name == "logs":
                logs.rmdir()

    def sweep_up(self) -> None:
        """Remove temporary files that a kill left; only for the process that holds the lock."""
        leftovers = [self / PRUNE, *self.path.glob(".error-*.json")]
        for folder, _ in walk(self.path):
            leftovers += folder.glob(".*.tmp")
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def log_line(run: RunDirectory | None, line: str) -> None:
    """Print one line on stderr and to the run's ``train.log``, on rank 0, passwords masked."""
    if not line or rank() != 0:
        return
    line = printable(mask_password(line))
    print(line, file=sys.stderr, flush=True)
    if run is None or _is_stderr(run / "train.log"):
        return
    with contextlib.suppress(OSError), open(run / "train.log", "a", opener=no_link) as file:
        file.write(line + "\n")


def _is_stderr(path: Path) -> bool:
    """Return whether a file is where stderr goes already, as of a sweep's job."""
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError, AttributeError):
        return False


def to_json(value: Any) -> str:
    """Serialise as strict JSON; numbers that are not finite become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda word: None)
    return json.dumps(finite, indent=1, allow_nan=False) + "\n"
