"""A run is its directory: its files (docs/runs.md), its lock, its status."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from triptych.config.file import read_config
from triptych.errors import UserError, mask_password
from triptych.files import check_directory, file_digest, load_object, no_link, replaced, storage_errors, walk
from triptych.run.processes import Lockable, check_held, rank
from triptych.run.result import Result, seal
from triptych.terminal import printable

LAST, BEST = "last.ckpt", "best.ckpt"
REPORTED = (f"checkpoints/{LAST}", f"checkpoints/{BEST}")  # of these, the one a run reports by
# files that a finished run's summary has digests of, as far as they are there; any other's of the first alone
SEALED = ("config.yaml", "provenance.json", "items.npz", "metrics.csv", "samples/final.png")
NO_CHECKPOINT = "no such file; pass a run's directory or a checkpoint in it, as checkpoints/last.ckpt"
REFUSED = ".refused"  # a file: why a sweep's job could not have the directory, until the sweep has read it
BEGINNING = ("config.yaml", "provenance.json", "progress.json", ".launch", ".lock")
PRUNE = "prune"  # a file that asks a run to stop after its next validation


@contextlib.contextmanager
def atomic(path: Path, new: bool = False) -> Iterator[IO[bytes]]:
    """Open ``path`` for an atomic write, as ``replaced``.

    FileExistsError: with ``new``, a file of that name is there. StorageError: no room, no permission, a lost
    lock; the file is as it was before.
    """
    check_held(path)
    with storage_errors(path), replaced(path, new) as file:
        yield file


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically; errors as of ``atomic``."""
    with atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_end(path: Path, start: int, data: bytes) -> None:
    """Replace what follows the first ``start`` bytes of a file, in one call; StorageError as ``atomic``.

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
    """Raise ValueError if a file beside a result does not match its digest; a missing file is no error."""
    for name in names:
        if name in digests and file_digest(folder / name) not in (digests[name], None):
            raise ValueError(f"{name}: damaged, or of another run")


def checkpoint_at(path: str | Path) -> Path:
    """Return the checkpoint at ``path``: the file itself, or the reported one of a run's directory."""
    run = RunDirectory(path)
    if not (run / "config.yaml").exists():
        return Path(path)
    check_directory(run.path)
    return run.reported()


class RunDirectory(Lockable):
    """One run's directory. Reading is tolerant, writing is atomic."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration; UserError if this is no run directory, or it is not plain data."""
        file = self / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path}: not a run's directory (no config.yaml); pass logs/runs/NAME")
        return read_config(file)

    def provenance(self) -> dict[str, Any]:
        """Read the run's provenance, malformed entries left out; empty if there is none."""
        record = load_object(self / "provenance.json")
        return {key: value for key, value in record.items() if _is_sound(key, value)}

    def summary(self) -> Result | None:
        """Read the recorded result; None if it is absent, unreadable, altered or of another run."""
        try:
            result = Result.from_json(load_object(self / "summary.json"))
            check_digests(self.path, result.digests, SEALED[:1])
            return result
        except ValueError:
            return None

    def damage(self) -> str:
        """Return what is wrong with ``config.yaml`` if the recorded result is not of it, else ""."""
        digests: Mapping[str, str] = {}
        with contextlib.suppress(ValueError):
            digests = Result.from_json(load_object(self / "summary.json")).digests
            check_digests(self.path, digests, SEALED[:1])
            return ""
        return f"{self / SEALED[0]} is damaged, edited or of another run" if digests else ""

    @property
    def status(self) -> str:
        """ "new", "interrupted" (it has a beginning and no end), "finished", "failed" or "diverged"."""
        if (result := self.summary()) is not None:
            return result.status
        return "interrupted" if (self / "config.yaml").exists() else "new"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints to resume from, by name: times change when files are copied."""
        return sorted((self / "checkpoints").glob("*.ckpt"))

    def reported(self) -> Path:
        """Return the path of the reported checkpoint: the last, unless the summary names the best."""
        result = self.summary()
        name = result.checkpoint if result is not None else ""
        if name and name not in REPORTED:
            raise UserError(f"{self.path}: checkpoint {name!r}: must be one of {', '.join(REPORTED)}")
        return self / (name or REPORTED[0])

    def record(self, result: Result) -> Result:
        """Write the result with digests of the files beside it and a checksum, and return it."""
        names = (*SEALED, *REPORTED) if result.status == "finished" else SEALED[:1]
        digests = {name: file_digest(self / name) for name in names}
        record = {**result.record, "digests": {name: value for name, value in digests.items() if value}}
        sealed = seal(printable(json.loads(to_json(record))))
        self.write("summary.json", sealed)
        return Result.from_json(sealed)

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as strict JSON, atomically."""
        write_atomic(self / name, to_json(value))

    def discard(self) -> None:
        """Remove the files of a run that never began; a sweep's cell keeps the reason, ``summary.json``."""
        if self.checkpoints() or (self / "metrics.csv").exists():
            return
        in_sweep = (self.path.parent / "sweep.json").exists()
        with contextlib.suppress(OSError):
            for folder in ("wandb", "tensorboard"):
                shutil.rmtree(self / folder, ignore_errors=True)
            for name in BEGINNING if in_sweep else (*BEGINNING, "summary.json"):
                (self / name).unlink(missing_ok=True)
            self.remove_empty()

    def remove_empty(self) -> None:
        """Remove an empty directory, and empty parents named runs and logs; else OSError."""
        self.path.rmdir()
        for folder, name in zip(self.path.parents, ("runs", "logs"), strict=False):
            if folder.name == name:  # and no folder of the user's own
                folder.rmdir()

    def sweep_up(self) -> None:
        """Remove temporary files that a kill left; only for the process that holds the lock."""
        temporary = (file for folder, _ in walk(self.path) for file in folder.glob(".*.tmp"))
        for leftover in (*temporary, *self.path.glob(".error-*.json")):
            leftover.unlink(missing_ok=True)
        (self / PRUNE).unlink(missing_ok=True)  # whoever starts it again wants it to go on


def _is_sound(key: str, value: Any) -> bool:
    match key:
        case "overrides" | "command":
            return isinstance(value, list)
        case "choices" | "git" | "fit_of":
            return isinstance(value, dict)
        case "data":
            return isinstance(value, dict) and {"fingerprint", "split"} <= {*value}
        case "sources":
            return isinstance(value, dict) and all(isinstance(files, dict) for files in value.values())
        case "executions":
            return isinstance(value, list) and all(map(_is_execution, value))
    return True


def _is_execution(one: Any) -> bool:
    sound = isinstance(one, dict) and isinstance(one.get("sources", ""), str)
    return sound and isinstance(one.get("versions", {}), dict)


def log_line(run: RunDirectory | None, line: str) -> None:
    """Print one line on stderr and to the run's ``train.log``, on rank 0, passwords masked."""
    if not line or rank() != 0:
        return
    line = printable(mask_password(line))
    print(line, file=sys.stderr, flush=True)
    if run is None:
        return
    log, same = run / "train.log", False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        same = os.path.samestat(os.fstat(sys.stderr.fileno()), log.stat())  # as of a sweep's job
    if not same:
        with contextlib.suppress(OSError), open(log, "a", opener=no_link) as file:
            file.write(line + "\n")


def to_json(value: Any) -> str:
    """Serialise as strict JSON; numbers that are not finite become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda word: None)
    return json.dumps(finite, indent=1, allow_nan=False) + "\n"
