"""Build data from a configuration, and check what a data set must hold."""

import copy
import math
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from triptych.config.build import build
from triptych.config.own_code import defined_at, is_own
from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import Mapped
from triptych.data.fingerprint import fingerprint
from triptych.diffusion.condition import Labels, Part

SPLITS = ("train", "val", "test")
WHOLE = (torch.int64, torch.uint8)  # of levels; labels are the first
CHUNK = 4096  # items checked together


def build_data(config: dict[str, Any], download: bool = True) -> DataModule:
    """Build and load the data, or raise a UserError; ``download=False`` overrides the configuration."""
    data = build(config["data"], "data")
    changes = config.get("augmentation") or {}
    data.shown = "test" if config.get("test", True) else "val"
    data.augmentations = [build(node, f"augmentation.{name}") for name, node in changes.items() if node]
    if not download and getattr(data, "download", False):
        data.download = False  # it would write where the configuration says
    data.setup()
    check_contract(data)
    return data


def check_contract(data: DataModule) -> None:
    """Check splits, shapes, dtypes, levels, finite values and conditions after ``setup``; else DataError."""
    kind = type(data)
    for name in ("name", "shape"):
        if not hasattr(data, name):
            raise DataError(f"data: {kind.__name__} sets no {name}; set it in the class{defined_at(kind)}")
    if breach := _breach(data):
        raise DataError(f"data {data.name}: {breach}{defined_at(data.load)}")


def check_repeatable(data: DataModule) -> None:
    """Refuse a user's data whose items follow from the global generators: each seed would have its own."""
    if not is_own(data) or not data.draws_globally:
        return
    again = copy.copy(data)
    with isolate_rng():  # which has moved on since the first time
        again.splits = again.load()
    if fingerprint(again).split != fingerprint(data).split:
        problem = "load draws from a global generator, so each seed has its own items"
        fix = "draw from torch.Generator().manual_seed(0) or numpy.random.default_rng(0)"
        raise DataError(f"data {data.name}: {problem}; {fix}{defined_at(data.load)}")


def _breach(data: DataModule) -> str:
    splits: Any = data.splits
    if not isinstance(splits, dict) or (missing := [name for name in SPLITS if name not in splits]):
        problem = f"no split {missing[0]}" if isinstance(splits, dict) else f"load gives {_class_of(splits)}"
        return f"{problem}; load must return {{name: Split}} of {', '.join(SPLITS)}, an empty one if need be"
    for name, split in splits.items():
        if not isinstance(split, Split):
            return f"{name}: {_class_of(split)}; must be a Split"
        if split.levels != data.levels:
            return f"{name}: levels={split.levels} in its Split; must be {data.levels}, as the class says"
        values: Any = Part(split.values)  # type: ignore[arg-type]
        if breach := _part_breach(values, (len(split), *data.shape), data.levels, WHOLE, data.largest):
            return f"{name}: values{breach}"
        for place, kind in data.conditions.items():
            part = None if split.condition is None else split.condition.part(place)
            if part is None:
                return f"{name}: no {place}; each item needs one, as {kind} says"
            classes = kind.classes if isinstance(kind, Labels) else None
            if breach := _part_breach(part, (len(split), *kind.shape), classes, WHOLE[:1], math.inf):
                return f"{name}: {place}{breach}"
    return "" if len(splits["train"]) else "train: no items; must have one or more"


def _part_breach(
    part: Part, shape: tuple[int, ...], levels: int | None, whole: tuple[torch.dtype, ...], largest: float
) -> str:
    # of whole numbers below ``levels``, or of finite ones
    value: Any = part.value
    if not isinstance(value, Tensor | Mapped):
        return f": {_class_of(value)}; must be a torch.Tensor"
    if tuple(value.shape) != shape:
        return f" of shape {tuple(value.shape)}; must be {shape}"
    dtype = value[:1].dtype
    if levels is None and not dtype.is_floating_point:
        return f": {dtype}; must be float32, or set levels=K in the class for whole numbers"
    if levels is not None and dtype not in whole:
        return f": {dtype}; must be whole numbers from 0 to {levels - 1} as {' or '.join(map(str, whole))}"
    if levels is not None and levels > 255 and dtype == torch.uint8:
        return ""  # nothing can be outside, and need not be read
    for start in range(0, len(value), CHUNK):
        some = value[start : start + CHUNK]
        if levels is None and not (finite := some.isfinite().reshape(len(some), -1).all(1)).all():
            return f": item {start + int(finite.long().argmin())} is not finite; each must be"
        if levels is not None and part.present is not None:
            some = some[part.present[start : start + CHUNK]]
        low, high = some.aminmax() if some.numel() else (0, 0)
        if levels is not None and not 0 <= low <= high < levels:
            return f" from {low} to {high}; must be whole numbers from 0 to {levels - 1}"
        if levels is None and (size := float(max(-low, high))) > largest:
            return (
                f" up to {size:.4g}; must be at most {largest:g} in absolute value, as noise schedules are"
                " made for about 1; a class whose data are larger says `largest`"
            )
    return ""


def _class_of(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
