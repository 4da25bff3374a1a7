"""What the parts of a model give, looked at once on a few training items before the first step.

A tensor of another shape may broadcast and train silently; here it is refused with its own file and line.
Nothing that a step follows from is moved: neither weights, nor modes, nor random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from triptych.config.own_code import defined_at
from triptych.errors import UserError


class PartOutput(NamedTuple):
    """What one part gave.

    key: the part's place in a configuration; by: the function that gave ``value``; shapes: right ones.
    """

    key: str
    by: Any
    value: Any
    shapes: tuple[tuple[int, ...], ...]


def check_outputs(model: nn.Module, outputs: Iterator[PartOutput]) -> None:
    """Check each part's output in turn.

    Raises:
        UserError: no tensor, another shape, or numbers that are not finite.
    """
    with isolate_rng(), torch.no_grad(), _at_rest(model):
        for one in outputs:
            if breach := _breach(one):
                kind = type(getattr(one.by, "__self__", one.by))
                at = defined_at(one.by) or defined_at(kind)  # forward may be a parent's
                raise UserError(f"{one.key}: {kind.__name__} gives {breach}{at}")


def _breach(one: PartOutput) -> str:
    shapes = " or ".join(map(str, one.shapes))
    if not isinstance(one.value, Tensor):
        return f"a {type(one.value).__name__}; must be a tensor of shape {shapes}"
    if tuple(one.value.shape) not in one.shapes:
        return f"shape {tuple(one.value.shape)}; must be {shapes}"
    if not one.value.is_floating_point():
        return f"{one.value.dtype}; must be floating point"
    if bad := int((~one.value.isfinite()).sum()):
        return f"{bad} of {one.value.numel()} numbers that are not finite; all must be"
    return ""


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    # evaluation mode, so that no running average moves; then each module's own again
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
