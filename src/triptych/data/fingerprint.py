"""Fingerprint data: by their contents as a model sees them, or by the formula that draws them.

Neither path nor time enters, so a copy elsewhere is the same data. 0.2 s for 60,000 images of 28 x 28.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.data.cache import Mapped, item_number

HELD_OUT = ("val", "test")
CHUNK = 1024  # items in memory at a time


@dataclass(frozen=True)
class Fingerprint:
    """Of loaded data.

    data: the items whatever their order, and which of them test: equal, and two bounds may be compared;
    split: which item trains, validates and tests, in their order: equal, and a run may go on;
    n: items a split; items: for each split, int64 (n,), one number an item; {} for data that a formula draws.
    about: for people, no part of what the data are: "description"; "classes", their names; "shared", how many
    items of each held-out split are in train too.
    """

    data: str
    split: str
    n: dict[str, int]
    items: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the fingerprint's entries of ``summary.json``, without the numbers of items."""
        return {"fingerprint": self.data, "split": self.split, "n": self.n, **self.about}


def fingerprint(data: DataModule) -> Fingerprint:
    """Return the fingerprint of data after ``setup``."""
    n = {name: len(split) for name, split in data.splits.items()}
    about: dict[str, Any] = {"description": data.description}
    if data.class_names:
        about["classes"] = [*data.class_names]
    known = {name: repr(kind) for name, kind in data.conditions.items() if name != "label"}
    others = {name: kind for name, kind in known.items() if name not in data.computed}
    kind: list[Any] = [data.name, list(data.shape), data.levels, data.num_classes]
    kind += [others] if others else []
    if data.computed:  # their last digits differ between machines; what they follow from does not
        kind.append([known, *data.encoders])
    drawn = data.formula()
    if drawn is not None:
        judged = {"test_size": n["test"], "data_seed": getattr(data, "data_seed", 0)}
        return Fingerprint(_hex(kind, drawn, judged), _hex(kind, drawn, judged, n), n, about=about)
    splits = data.splits.items()
    items = {k: _numbers(s.values) if s.digests is None else s.digests for k, s in splits}
    shared = {name: int(torch.isin(items[name], items["train"]).sum()) for name in HELD_OUT}
    if shared := {name: k for name, k in shared.items() if k}:
        about["shared"] = shared
    # with its condition, an item is a few numbers; sorted, as the order of a set is no part of what it is
    columns = {k: [items[k].numpy(), *_condition(data.splits[k], [*others])] for k in items}
    for k, captions in getattr(data, "captions", {}).items() if "text" in data.computed else ():
        texts = (np.frombuffer(caption.encode(), np.uint8) for caption in captions)
        columns[k] += [np.array([*map(item_number, texts)], np.int64)]
    rows = {k: np.stack(some, 1) for k, some in columns.items()}
    whole = np.concatenate([*rows.values()])
    whole, test = (part[np.lexsort(part.T)] for part in (whole, rows["test"]))
    return Fingerprint(_hex(kind, whole, test), _hex(kind, *rows.values()), n, items, about)


def leakage(facts: dict[str, Any]) -> list[str]:
    """Return a line for each held-out split that shares items with train, from ``Fingerprint.record``."""
    return [
        f"data: {k} of the {facts['n'][name]} {name} items are identical to items in train (leakage)"
        for name, k in facts.get("shared", {}).items()
    ]


def _numbers(values: Tensor | Mapped) -> Tensor:
    """Return a number for each item, (n,) int64."""
    n = len(values)
    parts = (values[start : start + CHUNK].contiguous().numpy() for start in range(0, n, CHUNK))
    return torch.tensor([item_number(item) for part in parts for item in part], dtype=torch.int64)


def _condition(split: Split, others: list[str]) -> list[np.ndarray]:
    """Return the label, 0 without one, and three numbers for each other part; (n,) int64 each."""
    columns = [np.zeros(len(split), np.int64) if split.labels is None else split.labels.numpy()]
    for name in others:
        assert split.condition is not None
        part = split.condition.parts[name]
        mask = torch.ones(len(split), 0) if part.mask is None else part.mask
        present = torch.ones(len(split), dtype=torch.bool) if part.present is None else part.present
        columns += [_numbers(t).numpy() for t in (part.value, present, mask)]
    return columns


def _hex(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        array = isinstance(part, np.ndarray)
        digest.update(part.astype("<i8").tobytes() if array else json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()
