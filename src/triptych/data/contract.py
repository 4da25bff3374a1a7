"""What is asked of loaded data, looked at once: a breach would train silently, or fail far from its cause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triptych.config.mistakes import defined_at
from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import Mapped
from triptych.diffusion.condition import Images, Kind, Labels, Part, Tokens, Vectors

SPLITS = ("train", "val", "test")
CHUNK = 4096  # items looked at together


def check_contract(data: DataModule) -> None:
    """Splits, shapes, dtypes, levels, finite values, and the parts of conditions, of data after ``setup``.

    Raises:
        DataError: the first breach, what was found and what is accepted, with file and line of own code.
    """
    kind = type(data)
    for name in ("name", "shape"):
        if not hasattr(data, name):
            raise DataError(f"data: {kind.__name__} sets no {name}; one is needed{defined_at(kind)}")
    said = next(_breaches(data), "")
    if said:
        raise DataError(f"data {data.name}: {said}{defined_at(data.load)}")


def _breaches(data: DataModule) -> Iterator[str]:
    splits: Any = data.splits
    if not isinstance(splits, dict) or (missing := [name for name in SPLITS if name not in splits]):
        found = f"no split {missing[0]}" if isinstance(splits, dict) else f"load gives {_of(splits)}"
        yield f"{found}; a dictionary with {', '.join(SPLITS)} is accepted, each a Split, if an empty one"
        return
    for name, split in splits.items():
        if not isinstance(split, Split):
            yield f"{name}: {_of(split)}; a Split is accepted"
            return
        for said in (*_of_values(data, split), *_of_condition(data, split)):
            yield f"{name}: {said}"
    if not len(splits["train"]):
        yield "train: no items; one or more are accepted"


def _of_values(data: DataModule, split: Split) -> Iterator[str]:
    values, levels = split.values, data.levels
    if not isinstance(values, Tensor | Mapped):
        yield f"values are {_of(values)}; a torch.Tensor is accepted"
        return
    if tuple(values.shape[1:]) != tuple(data.shape):
        wanted = ", ".join(map(str, data.shape))
        yield f"values of shape {tuple(values.shape)}; (items, {wanted}) is accepted, as shape says"
        return
    few = values[:1]
    if levels is None:
        if split.levels is not None or not few.is_floating_point():
            yield (
                f"{few.dtype} with levels={split.levels}, where the class says levels=None; "
                "numbers of a density as float32 are accepted, or levels=K of the class too"
            )
            return
        yield from _of_numbers(values, data.largest)
        return
    if split.levels != levels or few.dtype not in (torch.uint8, torch.int64):
        yield (
            f"{few.dtype} with levels={split.levels}; numbers of levels from 0 to {levels - 1} as uint8 or "
            f"int64 are accepted, in Split(..., levels={levels})"
        )
    elif not (levels > 255 and few.dtype == torch.uint8):  # else nothing can be outside, and need not be read
        for _, part in _parts(values):
            low, high = (int(end) for end in part.aminmax())
            if low < 0 or high >= levels:
                yield f"levels from {low} to {high}; whole numbers from 0 to {levels - 1} are accepted"
                return


def _of_numbers(values: Tensor | Mapped, largest: float, what: str = "values") -> Iterator[str]:
    for start, part in _parts(values):
        fine = part.isfinite().reshape(len(part), -1).all(1)
        if not fine.all():
            yield f"item {start + int(fine.long().argmin())} is not finite; finite {what} are accepted"
            return
        if (found := float(part.abs().max())) > largest:
            yield (
                f"{what} up to {found:.4g}; up to {largest:g} in absolute value are accepted, as noise "
                "schedules are made for about 1; a class whose data are larger says `largest`"
            )
            return


def _of_condition(data: DataModule, split: Split) -> Iterator[str]:
    for name, kind in data.conditions.items():
        part = None if split.condition is None else split.condition.part(name)
        if part is None:
            yield f"no {name}; one for each item is accepted, as {kind} says"
            return
        value, n, each = part.value, len(split), _shape(kind)
        if not isinstance(value, Tensor | Mapped):
            yield f"{name} is {_of(value)}; a torch.Tensor is accepted"
        elif tuple(value.shape) != (n, *each):
            yield f"{name} of shape {tuple(value.shape)} with {n} items; {(n, *each)} is accepted"
        elif not isinstance(kind, Labels):
            if not value[:1].is_floating_point():
                yield f"{name} is {value[:1].dtype}; float32 is accepted"
            elif n:
                yield from _of_numbers(value, torch.inf, f"numbers of {name}")
        elif value.dtype != torch.int64:
            yield f"{name} is {value.dtype}; int64 is accepted"
        elif len(known := _given(part)) and not 0 <= int(known.min()) <= int(known.max()) < kind.classes:
            yield (
                f"{name} from {int(known.min())} to {int(known.max())}; whole numbers from 0 to "
                f"{kind.classes - 1} are accepted, as num_classes says"
            )


def _shape(kind: Kind) -> tuple[int, ...]:
    match kind:
        case Vectors(width):
            return (width,)
        case Images(shape):
            return tuple(shape)
        case Tokens(length, width):
            return (length, width)
    return ()


def _given(part: Part) -> Tensor:
    return part.value if part.given is None else part.value[part.given]


def _parts(values: Tensor | Mapped) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(values), CHUNK):
        yield start, values[start : start + CHUNK]


def _of(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
