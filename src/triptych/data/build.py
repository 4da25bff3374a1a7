"""Build data from a configuration, and check what a data set must hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triptych.config.build import build
from triptych.config.own_code import defined_at
from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import Mapped
from triptych.diffusion.condition import Labels

SPLITS = ("train", "val", "test")
CHUNK = 4096  # items checked together


def build_data(config: dict[str, Any], download: bool = True) -> DataModule:
    """Build and load the data; ``download=False`` overrides the configuration.

    Raises:
        UserError: it cannot be built or read, or what it holds breaks the contract of a data set.
    """
    data = build(config["data"], "data")
    changes = config.get("augmentation") or {}
    data.augmentations = [build(node, f"augmentation.{name}") for name, node in changes.items() if node]
    if not download and getattr(data, "download", False):
        data.download = False  # it would write where the configuration says
    data.setup()
    check_contract(data)
    return data


def check_contract(data: DataModule) -> None:
    """Check splits, shapes, dtypes, levels, finite values and parts of conditions, of data after ``setup``.

    Raises:
        DataError: the first breach, with file and line of own code.
    """
    kind = type(data)
    for name in ("name", "shape"):
        if not hasattr(data, name):
            raise DataError(f"data: {kind.__name__} sets no {name}; set it in the class{defined_at(kind)}")
    if breach := next(_breaches(data), ""):
        raise DataError(f"data {data.name}: {breach}{defined_at(data.load)}")


def _breaches(data: DataModule) -> Iterator[str]:
    splits: Any = data.splits
    if not isinstance(splits, dict) or (missing := [name for name in SPLITS if name not in splits]):
        problem = f"no split {missing[0]}" if isinstance(splits, dict) else f"load gives {_class_of(splits)}"
        yield f"{problem}; load must return {{name: Split}} of {', '.join(SPLITS)}, an empty one if need be"
        return
    for name, split in splits.items():
        if not isinstance(split, Split):
            yield f"{name}: {_class_of(split)}; must be a Split"
            return
        for breach in (*_values_breaches(data, split), *_condition_breaches(data, split)):
            yield f"{name}: {breach}"
    if not len(splits["train"]):
        yield "train: no items; must have one or more"


def _values_breaches(data: DataModule, split: Split) -> Iterator[str]:
    values, levels = split.values, data.levels
    if not isinstance(values, Tensor | Mapped):
        yield f"values are {_class_of(values)}; must be a torch.Tensor"
        return
    if tuple(values.shape[1:]) != tuple(data.shape):
        shape = ", ".join(map(str, data.shape))
        yield f"values of shape {tuple(values.shape)}; must be (items, {shape}), as shape says"
        return
    few = values[:1]
    if levels is None:
        if split.levels is not None or not few.is_floating_point():
            yield (
                f"{few.dtype} with levels={split.levels}, where the class says levels=None; "
                "must be numbers of a density as float32, or set levels=K in the class too"
            )
            return
        yield from _number_breaches(values, data.largest)
        return
    if split.levels != levels or few.dtype not in (torch.uint8, torch.int64):
        yield (
            f"{few.dtype} with levels={split.levels}; must be numbers of levels from 0 to {levels - 1} as "
            f"uint8 or int64, in Split(..., levels={levels})"
        )
    elif not (levels > 255 and few.dtype == torch.uint8):  # else nothing can be outside, and need not be read
        for start in range(0, len(values), CHUNK):
            low, high = (int(end) for end in values[start : start + CHUNK].aminmax())
            if low < 0 or high >= levels:
                yield f"levels from {low} to {high}; must be whole numbers from 0 to {levels - 1}"
                return


def _number_breaches(values: Tensor | Mapped, largest: float, what: str = "values") -> Iterator[str]:
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        finite = part.isfinite().reshape(len(part), -1).all(1)
        if not finite.all():
            yield f"item {start + int(finite.long().argmin())} is not finite; {what} must be"
            return
        if (size := float(part.abs().max())) > largest:
            yield (
                f"{what} up to {size:.4g}; must be at most {largest:g} in absolute value, as noise schedules "
                "are made for about 1; a class whose data are larger says `largest`"
            )
            return


def _condition_breaches(data: DataModule, split: Split) -> Iterator[str]:
    for name, kind in data.conditions.items():
        part = None if split.condition is None else split.condition.part(name)
        if part is None:
            yield f"no {name}; each item needs one, as {kind} says"
            return
        value, shape = part.value, (len(split), *kind.shape)
        if not isinstance(value, Tensor | Mapped):
            yield f"{name} is {_class_of(value)}; must be a torch.Tensor"
        elif tuple(value.shape) != shape:
            yield f"{name} of shape {tuple(value.shape)} with {len(split)} items; must be {shape}"
        elif not isinstance(kind, Labels):
            if not value[:1].is_floating_point():
                yield f"{name} is {value[:1].dtype}; must be float32"
            elif len(split):
                yield from _number_breaches(value, torch.inf, f"numbers of {name}")
        elif value.dtype != torch.int64:
            yield f"{name} is {value.dtype}; must be int64"
        else:
            known = value[part.presence()]
            if len(known) and not 0 <= int(known.min()) <= int(known.max()) < kind.classes:
                yield (
                    f"{name} from {int(known.min())} to {int(known.max())}; must be whole numbers from 0 to "
                    f"{kind.classes - 1}, as num_classes says"
                )


def _class_of(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
