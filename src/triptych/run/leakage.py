"""Detect train/test leakage and changed data between two starts of a run."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.data.fingerprint import HELD_OUT, Fingerprint
from triptych.errors import UserError, mask_password
from triptych.files import no_link, printable
from triptych.run.directory import RunDirectory
from triptych.run.processes import rank
from triptych.run.provenance import own_changes

_noted: set[Path] = set()


def compare_data(now: Fingerprint, seen: dict[str, Any] | None, judged: Sequence[str], fix: str) -> str:
    """Describe how data differ from those ``seen`` by a checkpoint's model (``remember``); "" if they do not.

    UserError, which ends with ``fix``: the model was trained on an item of a split in ``judged``.
    """
    if not seen or (seen["fingerprint"], seen["split"]) == (now.data, now.split):
        return ""
    before = ", ".join(f"{n} {name}" for name, n in seen["n"].items())
    after = ", ".join(f"{n} {name}" for name, n in now.n.items())
    change = f"fingerprint {seen['fingerprint'][:8]} -> {now.data[:8]}; {before} -> {after}"
    for split in judged:
        if trained := _trained_on(now.items.get(split), seen.get("items") or {}):
            items = f"{trained} of the {now.n[split]} items of split={split}"
            why = f"the data or their split have changed since ({change})"
            raise UserError(f"data: {items} are ones that this model was trained on: {why}; {fix}")
    measured = f"; no item of {' or '.join(judged)} was trained on" if judged and now.items else ""
    return f"data: not those that this model was trained on ({change}){measured}"


def remember(now: Fingerprint, seen: dict[str, Any] | None) -> dict[str, Any]:
    """Return a checkpoint's data record: today's fingerprint, and digests of all items trained on."""
    items = dict(now.items)
    changed = False
    if seen:
        changed = seen.get("changed", False) or (seen["fingerprint"], seen["split"]) != (now.data, now.split)
        theirs = (seen.get("items") or {}).get("train")
        if items and theirs is not None and (changed or len(theirs) > len(items["train"])):
            items["train"] = torch.cat([theirs, items["train"]]).unique()
    return {**now.record(), "changed": changed, "items": items}


def log_line(run: RunDirectory | None, line: str) -> None:
    """Print one line on stderr and to the run's ``train.log``, on rank 0, passwords masked."""
    if not line or rank() != 0:
        return
    line = printable(mask_password(line))
    print(line, file=sys.stderr, flush=True)
    if run is None:
        return
    log, same = run / "train.log", False
    with suppress(OSError, ValueError, AttributeError):
        same = os.path.samestat(os.fstat(sys.stderr.fileno()), log.stat())  # as of a sweep's job
    if not same:
        with suppress(OSError), open(log, "a", opener=no_link) as file:
            file.write(line + "\n")


def log_own_changes(what: str, run: Path, config: dict[str, Any]) -> None:
    """Print one line, once a run, if own packages are not those with which the run ``what`` was trained."""
    if run not in _noted and (changes := own_changes(RunDirectory(run), config)):
        _noted.add(run)
        log_line(None, f"{what}: trained under other {changes} than now")


def _trained_on(items: Tensor | None, seen: dict[str, Tensor]) -> int:
    if items is None or "train" not in seen:
        return 0
    doubles = torch.cat([seen[name] for name in HELD_OUT if name in seen] or [items[:0]])
    return int((torch.isin(items, seen["train"]) & ~torch.isin(items, doubles)).sum())
