"""Build data from a configuration, check what a data set must hold, and fingerprint it.

The fingerprint is a hash of the values that a model sees, or of the formula that draws them. It
does not depend on paths or file times, so a copy elsewhere counts as the same data. It takes 0.2 s
for 60,000 images of 28 x 28.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from triptych.config.build import build
from triptych.config.own_code import definition_location, reraise_as_user_error
from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import MappedRows, item_number
from triptych.diffusion.condition import Labels
from triptych.records import Config, Entries

SPLITS = ("train", "val", "test")
CHECK_CHUNK = 4096  # number of items that are checked at once
HASH_CHUNK = 1024  # number of items that are hashed at once
HELD_OUT = ("val", "test")  # splits without training items


def build_data(config: Config, download: bool = True) -> DataModule:
    """Build and load the data of a configuration; errors are raised as UserError.

    ``download=False`` overrides the configuration.
    """
    data = build(config["data"], "data")
    if not config.get("test", True):
        data.shown = "val"
    for name, node in (config.get("augmentation") or {}).items():
        if node:
            data.augmentations.append(build(node, f"augmentation.{name}"))
    if not download:
        data.download = False  # an untrusted configuration must not decide where files are written
    with reraise_as_user_error("data"):
        data.setup()
    check_splits_match_declaration(data)
    return data


def check_splits_match_declaration(data: DataModule) -> None:
    """Check that each split has the shapes, levels and conditions that its class declares.

    All values must be finite.
    """
    for name in SPLITS:
        split: Any = data.splits.get(name)
        if not isinstance(split, Split):
            _raise_data_error(
                data, f"{name}: load() returns no Split of this name; return one, empty if need be"
            )
        if split.levels != data.levels:
            _raise_data_error(
                data,
                f"{name}: levels={split.levels} in its Split; must be {data.levels}, as in the "
                "class",
            )
        _check_shape(data, f"{name}: values", split.values, (len(split), *data.shape))
        if data.levels is None:
            _check_numbers(data, f"{name}: values", split.values, data.largest)
        else:
            _check_whole_numbers(data, f"{name}: values", split.values, data.levels)
        _check_conditions(data, name, split)
        _check_groups(data, name, split)
    if not len(data.splits["train"]):
        _raise_data_error(data, "train: no items; must have one or more")


def _check_conditions(data: DataModule, name: str, split: Split) -> None:
    parts = {} if split.condition is None else split.condition.parts
    for part_name, kind in data.conditions.items():
        part = parts.get(part_name)
        if part is None:
            _raise_data_error(
                data, f"{name}: no {part_name}; each item needs one, as the class declares {kind}"
            )
        _check_shape(data, f"{name}: {part_name}", part.value, (len(split), *kind.shape))
        if isinstance(kind, Labels):
            present = part.value if part.present is None else part.value[part.present]
            # Refuse uint8: embeddings do not accept it, and indexing takes it for a mask.
            _check_whole_numbers(
                data, f"{name}: {part_name}", present, kind.classes, (torch.int64,)
            )
        else:
            _check_numbers(data, f"{name}: {part_name}", part.value, math.inf)


def _check_groups(data: DataModule, name: str, split: Split) -> None:
    groups = split.groups
    if groups is None:
        return
    _check_shape(data, f"{name}: groups", groups, (len(split),))
    if name == "test" and len(groups.unique()) == 1:
        _raise_data_error(
            data, "test: all items are of one group; put them into two or more groups"
        )


def _raise_data_error(data: DataModule, problem: str) -> NoReturn:
    raise DataError(f"data {data.name}: {problem}{definition_location(data.load)}")


def _check_shape(data: DataModule, location: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor | MappedRows):
        _raise_data_error(data, f"{location}: a {type(value).__name__}; must be a torch.Tensor")
    if tuple(value.shape) != shape:
        _raise_data_error(data, f"{location}: shape {tuple(value.shape)}; must be {shape}")


def _check_whole_numbers(
    data: DataModule,
    location: str,
    value: Tensor | MappedRows,
    levels: int,
    dtypes: tuple[torch.dtype, ...] = (torch.int64, torch.uint8),
) -> None:
    must = f"must be whole numbers from 0 to {levels - 1}"
    dtype = value[:1].dtype
    if dtype not in dtypes:
        _raise_data_error(data, f"{location}: {dtype}; {must} as {' or '.join(map(str, dtypes))}")
    if dtype == torch.uint8 and levels > 255:
        return  # every uint8 value is valid, so images on disk need not be read
    for start in range(0, len(value), CHECK_CHUNK):
        low, high = value[start : start + CHECK_CHUNK].aminmax()
        if low < 0 or high >= levels:
            _raise_data_error(data, f"{location}: range {low} to {high}; {must}")


def _check_numbers(
    data: DataModule, location: str, value: Tensor | MappedRows, max_magnitude: float
) -> None:
    for start in range(0, len(value), CHECK_CHUNK):
        size = value[start : start + CHECK_CHUNK].abs().max().item()
        if not math.isfinite(size):
            _raise_data_error(
                data, f"{location}: a value from item {start} on is not finite; all must be finite"
            )
        if size > max_magnitude:
            _raise_data_error(
                data,
                f"{location}: absolute values up to {size:.4g}; must be at most {max_magnitude:g}, "
                "as noise schedules expect about 1; for larger data, set `largest` in the class",
            )


@dataclass(frozen=True)
class Fingerprint:
    """Digests that identify loaded data.

    data: digest of all items in any order, and of the test set. Bounds of two runs may be compared
        if it is equal.
    split: digest of each split's items in their order. A run may resume if it is equal.
    n: {split: number of items}.
    items: {split: a hash of each item, int64 (n,)}; {} for data that a formula draws.
    metadata: information for people, not part of the identity: "description"; "classes", their
        names; "shared", how many items of each held-out split are also in train.
    """

    data: str
    split: str
    n: dict[str, int]
    items: dict[str, Tensor] = field(default_factory=dict)
    metadata: Entries = field(default_factory=dict)

    def as_entries(self) -> Entries:
        """Return the fingerprint as recorded in ``summary.json``, without the hashes of items."""
        return {"fingerprint": self.data, "split": self.split, "n": self.n, **self.metadata}


def fingerprint(data: DataModule) -> Fingerprint:
    """Return the fingerprint of data after ``setup``."""
    n = {name: len(split) for name, split in data.splits.items()}
    metadata: Entries = {"description": data.description}
    if data.class_names:
        metadata["classes"] = [*data.class_names]
    facts = _data_properties(data)
    drawn = data.formula()
    if drawn is not None:
        test_settings = {"test_size": n["test"], "data_seed": getattr(data, "data_seed", 0)}
        return Fingerprint(
            _hex_digest(facts, drawn, test_settings),
            _hex_digest(facts, drawn, test_settings, n),
            n,
            metadata=metadata,
        )
    items = {
        name: _hash_items(split.values) if split.digests is None else split.digests
        for name, split in data.splits.items()
    }
    shared = _count_shared_with_train(items)
    if shared:
        metadata["shared"] = shared
    rows = {name: _item_rows(data, name, numbers) for name, numbers in items.items()}
    # Sort the rows, because the fingerprint must not depend on the order of the items.
    whole, test = _sorted_rows(np.concatenate([*rows.values()])), _sorted_rows(rows["test"])
    return Fingerprint(
        _hex_digest(facts, whole, test), _hex_digest(facts, *rows.values()), n, items, metadata
    )


def _data_properties(data: DataModule) -> list[Any]:
    """Return the fingerprint's further inputs besides the items: shape, conditions, test groups."""
    facts: list[Any] = [data.name, list(data.shape), data.levels, data.num_classes]
    kinds = {name: repr(kind) for name, kind in data.conditions.items() if name != "label"}
    groups = data.splits["test"].groups
    if groups is not None:
        facts.append(groups.tolist())
    read = {name: kind for name, kind in kinds.items() if name not in data.computed}
    if read:
        facts.append(read)
    if data.computed:  # hash the encoders' names, as last digits of tokens differ between machines
        facts.append([kinds, *data.encoders])
    return facts


def _count_shared_with_train(items: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the items of each held-out split that are also in train; omit splits without any."""
    counts = {name: int(torch.isin(items[name], items["train"]).sum()) for name in HELD_OUT}
    return {name: count for name, count in counts.items() if count}


def _item_rows(data: DataModule, name: str, items: Tensor) -> np.ndarray:
    """Return a row of hashes for each item of a split with its condition, (n, columns) int64."""
    split = data.splits[name]
    columns = [items.numpy(), _label_column(split)]
    for part_name in data.conditions:
        if part_name != "label" and part_name not in data.computed:
            columns += _part_columns(split, part_name)
    if "text" in data.computed:
        captions: list[str] = data.captions[name]  # type: ignore[attr-defined]  # ``Captioned`` defines it
        columns.append(_text_column(captions))
    return np.stack(columns, 1)


def _label_column(split: Split) -> np.ndarray:
    return np.zeros(len(split), np.int64) if split.labels is None else split.labels.numpy()


def _part_columns(split: Split, name: str) -> list[np.ndarray]:
    """Return columns of hashes: of a condition part's values, of its presence and of its mask."""
    assert split.condition is not None
    part = split.condition.parts[name]
    mask = torch.ones(len(split), 0) if part.mask is None else part.mask
    present = part.present
    if present is None:
        present = torch.ones(len(split), dtype=torch.bool)
    return [_hash_items(tensor).numpy() for tensor in (part.value, present, mask)]


def _text_column(texts: Sequence[str]) -> np.ndarray:
    numbers = [item_number(np.frombuffer(text.encode(), np.uint8)) for text in texts]
    return np.array(numbers, np.int64)


def _sorted_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


def leakage_warnings(facts: Entries) -> list[str]:
    """Return a warning for each held-out split that shares items with train.

    ``facts``: the entries that ``Fingerprint.as_entries`` returns.
    """
    return [
        (
            f"data: {k} of the {facts['n'][name]} {name} items are identical to items in train "
            "(leakage)"
        )
        for name, k in facts.get("shared", {}).items()
    ]


def _hash_items(values: Tensor | MappedRows) -> Tensor:
    """Hash each item to a number, (n,) int64."""
    n = len(values)
    parts = (
        values[start : start + HASH_CHUNK].contiguous().numpy() for start in range(0, n, HASH_CHUNK)
    )
    return torch.tensor([item_number(item) for part in parts for item in part], dtype=torch.int64)


def _hex_digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(part.astype("<i8").tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()
