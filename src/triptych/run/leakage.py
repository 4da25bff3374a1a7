"""Detect held-out items that a model was trained on, and data sets that have changed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.data.build import HELD_OUT, Fingerprint
from triptych.errors import UserError
from triptych.records import Entries


def compare_data(now: Fingerprint, seen: Entries | None, judged: Sequence[str], fix: str) -> str:
    """Describe how data differ from those ``seen`` by a checkpoint's model (``remember``).

    Return "" if they are equal or nothing is recorded. ``seen`` is a record from ``remember``.
    Raises UserError, which ends with ``fix``, if the model was trained on an item that is now in
    one of the splits ``judged``.
    """
    if not seen or not _has_changed(now, seen):
        return ""
    change = f"fingerprint {seen['fingerprint'][:8]} -> {now.data[:8]}"
    for split in judged:
        trained = _count_trained(now.items.get(split), seen.get("items", {}))
        if trained:
            items = f"{trained} of the {now.n[split]} {split} items"
            why = f"the data or their split have changed since then ({change})"
            raise UserError(f"data: the model was trained on {items}, as {why}; {fix}")
    return f"data: changed since this model was trained ({change})"


def remember(now: Fingerprint, seen: Entries | None) -> Entries:
    """Return a checkpoint's record of data: the fingerprint, and all items trained on."""
    items = dict(now.items)
    if not seen:
        return {**now.record(), "changed": False, "items": items}
    changed = seen.get("changed", False) or _has_changed(now, seen)
    trained = seen.get("items", {}).get("train")
    if items and trained is not None and (changed or len(trained) > len(items["train"])):
        items["train"] = torch.cat([trained, items["train"]]).unique()
    return {**now.record(), "changed": changed, "items": items}


def _has_changed(now: Fingerprint, seen: Entries) -> bool:
    return bool((seen["fingerprint"], seen["split"]) != (now.data, now.split))


def _count_trained(items: Tensor | None, seen: dict[str, Tensor]) -> int:
    """Count the items that were in the training split and not also in a held-out split.

    An item that occurs twice in the data can be in both.
    """
    if items is None or "train" not in seen:
        return 0
    held_out = [seen[name] for name in HELD_OUT if name in seen]
    doubles = torch.cat([items[:0], *held_out])
    return int((torch.isin(items, seen["train"]) & ~torch.isin(items, doubles)).sum())
