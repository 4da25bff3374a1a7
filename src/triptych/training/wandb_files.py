"""W&B's files on disk: what its transaction logs hold, and which of a run's directories still count."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # of LevelDB's log format, which W&B's files are in; its own header is 7 bytes too
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """W&B's protobuf records in a ``.wandb`` file, in order, up to where a kill has cut it."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]

    data, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # no header begins this near to a block's end
            place += left
            continue
        length, kind = struct.unpack_from("<4xHB", data, place)
        part = data[place + HEADER : place + HEADER + length]
        if kind == 0 or len(part) < length:
            return
        place += HEADER + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            try:
                yield record_type.FromString(whole)
            except DecodeError:
                return


def last_step(directory: Path) -> int:
    """The step of the last history row in a run's directory of W&B's; -1 where there is none."""
    steps = [
        record.history.step.num
        for path in directory.glob("*.wandb")
        for record in records(path)
        if record.HasField("history")
    ]
    return max(steps, default=-1)


def directories(folder: Path) -> list[Path]:
    """W&B's directories of a run, the oldest first."""
    found = [p for p in folder.glob("*run-*") if p.is_dir() and not p.is_symlink()]
    return sorted(found, key=lambda p: p.name.split("run-", 1)[1])


def is_sent(directory: Path) -> bool:
    """Whether W&B's server has it: it was online, or ``wandb sync`` has sent it or begun to."""
    return not directory.name.startswith("offline-") or any(directory.glob("*.wandb.sync*"))


def discard(paths: list[Path]) -> None:
    """Remove them, as far as they can be."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
