"""Detect held-out items that a model was trained on, and changes of a data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.data.build import HELD_OUT, Fingerprint
from triptych.errors import UserError
from triptych.records import Entries


def compare_data(
    current: Fingerprint, trained_on: Entries | None, evaluated_splits: Sequence[str], fix: str
) -> str:
    """Describe how the current data differ from the data that a model was trained on.

    Return "" if they are equal or nothing is recorded. ``trained_on`` is a record from
    ``data_record``. Raises UserError, which ends with ``fix``, if the model was trained on an item
    that is now in one of the splits ``evaluated_splits``.
    """
    if not trained_on or not _has_changed(current, trained_on):
        return ""
    change = f"fingerprint {trained_on['fingerprint'][:8]} -> {current.data[:8]}"
    for split in evaluated_splits:
        trained = _count_trained(current.items.get(split), trained_on.get("items", {}))
        if trained:
            raise UserError(
                f"data: the model was trained on {trained} of the {current.n[split]} {split} "
                f"items, as the data or their split have changed since then ({change}); {fix}"
            )
    return f"data: changed since this model was trained ({change})"


def data_record(current: Fingerprint, trained_on: Entries | None) -> Entries:
    """Return the data record for a checkpoint: the fingerprint, and all items trained on so far.

    ``trained_on`` is the data record of the checkpoint from which training continues, or None.
    """
    items = dict(current.items)
    if not trained_on:
        return {**current.as_entries(), "changed": False, "items": items}
    changed = trained_on.get("changed", False) or _has_changed(current, trained_on)
    trained = trained_on.get("items", {}).get("train")
    if items and trained is not None and (changed or len(trained) > len(items["train"])):
        items["train"] = torch.cat([trained, items["train"]]).unique()
    return {**current.as_entries(), "changed": changed, "items": items}


def _has_changed(current: Fingerprint, trained_on: Entries) -> bool:
    """Return whether the data or their split differ from those in a data record."""
    return bool((trained_on["fingerprint"], trained_on["split"]) != (current.data, current.split))


def _count_trained(items: Tensor | None, trained_on: dict[str, Tensor]) -> int:
    """Count those of ``items`` that a model was trained on, from their hashes.

    An item that occurs twice in the data can be in train and in a held-out split; it is not
    counted.
    """
    if items is None or "train" not in trained_on:
        return 0
    held_out = [trained_on[name] for name in HELD_OUT if name in trained_on]
    doubles = torch.cat([items[:0], *held_out])
    return int((torch.isin(items, trained_on["train"]) & ~torch.isin(items, doubles)).sum())
