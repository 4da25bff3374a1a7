"""Read W&B's transaction logs in a run's directory."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = (
    32768,
    7,
)  # of LevelDB's log format, which W&B's files are in; its own header is 7 bytes too
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """Return W&B's protobuf records in a ``.wandb`` file, in order, up to where a kill cut it."""
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


def directories(folder: Path) -> list[Path]:
    """Return W&B's directories in ``folder``, the oldest first."""
    match = [p for p in folder.glob("*run-*") if p.is_dir() and not p.is_symlink()]
    return sorted(match, key=lambda p: p.name.split("run-", 1)[1])


def rows(*paths: Path) -> list[dict[str, Any]]:
    """Return the rows of W&B's history in its directories, in order."""
    return [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for path in paths
        for file in path.glob("*.wandb")
        for record in records(file)
        if record.HasField("history")
    ]


def last_step(*paths: Path) -> int:
    """Return the last training step that has a row; -1 if none has."""
    return max((row["trainer/global_step"] for row in rows(*paths)), default=-1)
