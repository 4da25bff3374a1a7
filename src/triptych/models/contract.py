"""What the parts of a model give, looked at once on a few training items before the first step.

A tensor of another shape may broadcast and train silently. Neither weights, modes nor random numbers move.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from triptych.config.own_code import defined_at, describe_error, raised_at
from triptych.errors import UserError


class Logged(pl.LightningModule):
    """A module whose own figures nobody else logs: of two under one name Lightning would take the mean."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # no parameter, and Lightning sets it forty times a step
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def log(self, name: str, *value: Any, own: bool = False, **how: Any) -> None:  # type: ignore[override]
        sides = self.__dict__.setdefault("_sides", {})
        if sides.setdefault(name, own) != own and name != "step":  # which sets a row
            raise UserError(f"log({name!r}): also logged by the run itself, under this name; choose another")
        super().log(name, *value, **how)

    def log_own(self, figures: dict[str, Any], **how: Any) -> None:
        """Log the model's own figures."""
        known: Any = self.trainer._results if how.get("on_epoch") is False else ()
        for name, value in figures.items():
            key = f"{self._current_fx_name}.{name}"
            if key in known:  # a step's again: log() would copy all that it knows of the figure
                known.update_metrics(key, value, 1)
            else:
                self.log(name, value, own=True, **how)


class PartOutput(NamedTuple):
    """What one part gave, at the place ``key`` of a configuration.

    ``by``: the function that gave ``value``, or gives it when it is called; ``shapes``: right ones.
    """

    key: str
    by: Any
    value: Any
    shapes: tuple[tuple[int, ...], ...]


def check_outputs(model: nn.Module, outputs: Iterator[PartOutput]) -> None:
    """Check each part's output in turn: a tensor of a right shape and of finite numbers; else UserError."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # so that no running average moves
    try:
        with isolate_rng(), torch.no_grad(), raised_by():
            for one in outputs:
                check_output(one)
    finally:
        for module, mode in modes:
            module.training = mode


def check_output(one: PartOutput) -> Any:
    """Check one output and return it; UserError as ``check_outputs``, also for what its call raises."""
    kind, shapes = type(getattr(one.by, "__self__", one.by)), " or ".join(map(str, one.shapes))
    at = defined_at(one.by) or defined_at(kind)  # forward may be a parent's
    try:
        value = one.value() if callable(one.value) else one.value
    except Exception as error:
        if isinstance(error, UserError) or not (raised_at(error) or at):
            raise
        where = "" if raised_at(error) else at
        raise UserError(f"{one.key}: {describe_error(error)}{where}; it must give shape {shapes}") from error
    if breach := _breach(value, shapes, one.shapes):
        raise UserError(f"{one.key}: {kind.__name__} gives {breach}{at}")
    return value


def _breach(value: Any, shapes: str, right: tuple[tuple[int, ...], ...]) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}; must be a tensor of shape {shapes}"
    if tuple(value.shape) not in right:
        return f"shape {tuple(value.shape)}; must be {shapes}"
    if not value.is_floating_point():
        return f"{value.dtype}; must be floating point"
    if bad := int((~value.isfinite()).sum()):
        return f"{bad} of {value.numel()} numbers that are not finite; all must be"
    return ""


def check_mode(model: nn.Module, key: str) -> None:
    """Refuse a model in training mode, whose bound dropout would falsify."""
    networks: Any = getattr(model, "networks", list)()
    if any(one.training for one in (model, *networks)):
        raise UserError(f"{key}: the network is left in training mode; call model.eval()")


@contextmanager
def raised_by(key: str = "") -> Iterator[None]:
    """Raise each error of a user's code within the context as a UserError that begins with its ``key``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not raised_at(error):
            raise
        raise UserError(f"{key}: " * bool(key) + describe_error(error)) from error
