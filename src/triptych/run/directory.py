"""Read and write a run's directory: its files (docs/runs.md), its lock and its status."""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from triptych.config.file import read_config
from triptych.errors import Unreadable, UserError, mask_password
from triptych.files import (
    atomic_replacement,
    check_directory,
    read_record,
    storage_errors,
    walk,
)
from triptych.records import Config, Entries
from triptych.run.parsing import error_line
from triptych.run.processes import Lockable, check_lock_is_held, rank
from triptych.run.provenance_file import Provenance
from triptych.run.result import Result, Status
from triptych.terminal import escape_control_characters

SCHEMA = 2  # format version of the entry "triptych" in a checkpoint
LAST, BEST = "last.ckpt", "best.ckpt"
REPORTED = (f"checkpoints/{LAST}", f"checkpoints/{BEST}")  # a run reports one of these
# Files of a run that has not trained yet, which ``discard`` removes.
START_FILES = ("config.yaml", "provenance.json", "progress.json", ".launch", ".lock")
NEXT_CONFIG = ".config.next.yaml"  # replaces config.yaml when training begins
ASIDE = re.compile(r"\.old-[0-9a-f]+$")  # suffix of the directory of a run replaced by force=true
PRUNE = "prune"  # if this file exists, the run stops after its next validation


@contextlib.contextmanager
def atomic(path: Path, new: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for an atomic write: ``path`` is replaced when the ``with`` block ends.

    Raises:
        FileExistsError: ``new`` is true and the file already exists.
        StorageError: the disk is full, permission is denied or the lock is lost. The file is then
            unchanged.
    """
    check_lock_is_held(path)
    with storage_errors(path), atomic_replacement(path, new) as file:
        yield file


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically; raises the errors of ``atomic``."""
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files, {path: content}; if one cannot be written, all stay as they were.

    Only their renaming, at the end, can be cut short by a kill. Raises the errors of ``atomic``.
    """
    with contextlib.ExitStack() as files:
        for path, data in contents.items():
            with storage_errors(path):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            file = files.enter_context(atomic(path))
            with storage_errors(path):
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()


def resolve_checkpoint_path(path: str | Path) -> Path:
    """Return the checkpoint that a run reports if ``path`` is its directory, else ``path``."""
    run = RunDirectory(path)
    if not (run / "config.yaml").exists():
        return Path(path)
    check_directory(run.path)
    return run.reported_checkpoint()


class RunDirectory(Lockable):
    """The directory of one run.

    Its JSON records are written atomically, and a malformed record is refused as a whole.
    """

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> Config:
        """Read the resolved configuration, with settings that a command has changed.

        Raises UserError if there is no ``config.yaml``, or if it contains more than plain data.
        """
        file = self / "config.yaml"
        if (self / NEXT_CONFIG).exists():
            file = self / NEXT_CONFIG
        if not file.exists():
            raise UserError(f"{self.path}: not a run's directory (no config.yaml)")
        return read_config(file)

    @cached_property
    def provenance(self) -> Provenance:
        """The run's provenance, read once; empty if there is no file.

        Raises Unreadable if it is malformed.
        """
        return self._parse_provenance(read_record(self / "provenance.json") or {})

    def _parse_provenance(self, record: Entries) -> Provenance:
        """Parse the content of ``provenance.json``; Unreadable if it is malformed."""
        try:
            return Provenance.from_json(record)
        except ValueError as error:
            raise Unreadable(f"{self / 'provenance.json'}: {error_line(error)}") from error

    @property
    def readable_provenance(self) -> Provenance:
        """The provenance, or an empty one if it is unreadable; only to count or name runs."""
        try:
            return self.provenance
        except Unreadable:
            return Provenance()

    def write_provenance(self, record: Entries) -> None:
        """Write the provenance.

        Raises Unreadable if it would be malformed, for example because of a planted checkpoint.
        """
        self.provenance = self._parse_provenance(record)
        self.write("provenance.json", record)

    def summary(self) -> Result | None:
        """Read the recorded result; None if there is none.

        Raises Unreadable if it has an unknown schema or is malformed.
        """
        record = read_record(self / "summary.json")
        if record is None:
            return None
        try:
            return Result.from_json(record)
        except ValueError as error:
            raise Unreadable(f"{self / 'summary.json'}: {error_line(error)}") from error

    def read_records(self) -> Result | None:
        """Read provenance and result again, and return the result or None.

        Raises Unreadable if one of them is malformed.
        """
        self.__dict__.pop("provenance", None)
        _ = self.provenance
        return self.summary()

    def begin(self) -> None:
        """Remove a recorded failure and adopt changed settings, as training begins.

        Only then, as a start that does not get so far must leave the run as it was.
        """
        self.clear_failure()
        with contextlib.suppress(FileNotFoundError):
            os.replace(self / NEXT_CONFIG, self / "config.yaml")

    def clear_failure(self) -> None:
        """Remove the result if it records a failure, so that the run can be executed again."""
        result = self.summary()
        if result is not None and result.status != "finished":
            (self / "summary.json").unlink()

    @property
    def status(self) -> Status | Literal["new"]:
        """The run's status: that of its result, or else "unreadable", "interrupted" or "new".

        "interrupted" means that the run has a configuration but no result; it may still be running.
        """
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
        """Return a number of the result by its path, such as val.bpd.mean; None if it has none."""
        try:
            result = self.summary()
        except Unreadable:
            return None
        return result.figure(name) if result else None

    def checkpoints(self) -> list[Path]:
        """Return the paths of all checkpoints, sorted by name, as copying changes file times."""
        return sorted((self / "checkpoints").glob("*.ckpt"))

    def reported_checkpoint(self) -> Path:
        """Return the path of the reported checkpoint: the one in the result, or ``last.ckpt``."""
        result = self.summary()
        if result is None or not result.checkpoint:
            return self / REPORTED[0]
        if result.checkpoint not in REPORTED:
            raise UserError(
                f"{self.path}: checkpoint {result.checkpoint!r}: must be one of "
                f"{', '.join(REPORTED)}"
            )
        return self / result.checkpoint

    def record(self, result: Result) -> Result:
        """Write the result, and return it as it will be read."""
        record = escape_control_characters(json.loads(to_json(result.record)))
        self.write("summary.json", record)
        return Result.from_json(record)

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as strict JSON, atomically."""
        write_atomic(self / name, to_json(value))

    def discard(self) -> None:
        """Remove the files of this run, which failed before its first step.

        In a sweep's directory, ``summary.json`` with the reason is kept.
        """
        if self._has_trained():
            return
        files = [*START_FILES]
        if not (self.path.parent / "sweep.json").exists():
            files.append("summary.json")
        with contextlib.suppress(OSError):
            for folder in ("wandb", "tensorboard"):
                if self._has_made(self / folder):
                    shutil.rmtree(self / folder, ignore_errors=True)
            for name in files:
                (self / name).unlink(missing_ok=True)
            self.path.rmdir()
            self._remove_empty_parents()

    def _has_trained(self) -> bool:
        """Return whether the run has left a checkpoint or metrics."""
        return bool(self.checkpoints()) or (self / "metrics.csv").exists()

    def _has_made(self, folder: Path) -> bool:
        """Return whether nothing in a folder is older than this run."""
        if not (self / "config.yaml").exists():
            return False
        began = (self / "config.yaml").stat().st_mtime
        return all(path.lstat().st_mtime >= began for path in folder.rglob("*"))

    def restore_replaced(self) -> bool:
        """Put back the run that this one had replaced (``force=true``), if it has not trained.

        Return whether there was one.
        """
        aside = self.readable_provenance.aside
        # Check the name, which is read from a file.
        named = ASIDE.sub("", aside) == self.path.name
        if not named or not self.path.with_name(aside).is_dir() or self._has_trained():
            return False
        shutil.rmtree(self.path)
        self.path.with_name(aside).rename(self.path)
        return True

    def _remove_empty_parents(self) -> None:
        """Remove the folders ``runs`` and ``logs`` above this directory if they are empty."""
        runs, logs = self.path.parent, self.path.parent.parent
        if runs.name == "runs":  # The user's own folders are kept.
            runs.rmdir()
            if logs.name == "logs":
                logs.rmdir()

    def remove_temporary_files(self) -> None:
        """Remove temporary files of a killed process; call this only while holding the lock."""
        leftovers = [self / PRUNE, *self.path.glob(".error-*.json")]
        for folder, _ in walk(self.path):
            leftovers += folder.glob(".*.tmp")
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def log_line(run: RunDirectory | None, line: str) -> None:
    """On rank 0, print a line on stderr and append it to ``train.log``, with passwords masked."""
    if not line or rank() != 0:
        return
    line = escape_control_characters(mask_password(line))
    print(line, file=sys.stderr, flush=True)
    if run is None or _is_stderr(run / "train.log"):
        return
    with (
        contextlib.suppress(OSError),
        open(run / "train.log", "a") as file,
    ):
        file.write(line + "\n")


def _is_stderr(path: Path) -> bool:
    """Return whether stderr is already redirected to this file, as it is in a sweep's job."""
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError, AttributeError):
        return False


def to_json(value: Any) -> str:
    """Serialise to strict JSON; NaN and infinities become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda word: None)
    return json.dumps(finite, indent=1, allow_nan=False) + "\n"
