"""Decide which classes a possibly untrusted configuration may name and import.

Allowed are classes *defined* in one of ``ROOMS``, by the name in their own module; optimisers of
``torch.optim`` and schedulers of ``torch.optim.lr_scheduler``; Lightning's classes in ``HOMES``,
with plain arguments; and classes defined in a package that the owner of this clone trusts
(``TRIPTYCH_TRUST=a,b`` or, in pyproject.toml, ``[tool.triptych] trust = ["a", "b"]``). Functions,
nested names and names that a module merely imports are refused.

``check_name`` reads the table of signatures and imports nothing. ``import_class`` imports one
module, and checks that the object is the class of that name.
"""

import difflib
import re
import sys
from importlib import import_module
from typing import Any

from triptych.config.habits import CALLBACKS
from triptych.config.own_code import (
    error_location,
    is_trusted,
    is_within_package,
)
from triptych.config.own_code import trusted_packages as trusted_packages
from triptych.config.signatures import arguments, defining_name, is_listed, read_table
from triptych.errors import UserError

ROOMS = ("data", "networks", "diffusion", "models", "callbacks")
OURS = tuple(f"triptych.{room}." for room in ROOMS)
LIGHTNINGS = "pytorch_lightning.callbacks."
# {allowed class of Lightning: its module}; these neither write files nor change weights.
HOMES = {
    "pytorch_lightning.Trainer": "pytorch_lightning.trainer.trainer",
    f"{LIGHTNINGS}DeviceStatsMonitor": f"{LIGHTNINGS}device_stats_monitor",
    f"{LIGHTNINGS}EarlyStopping": f"{LIGHTNINGS}early_stopping",
    f"{LIGHTNINGS}LearningRateMonitor": f"{LIGHTNINGS}lr_monitor",
    f"{LIGHTNINGS}ModelSummary": f"{LIGHTNINGS}model_summary",
    f"{LIGHTNINGS}Timer": f"{LIGHTNINGS}timer",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+")
OPTIMISER = re.compile(r"torch\.optim\.[A-Z][A-Za-z0-9]*")
SCHEDULER = re.compile(r"torch\.optim\.lr_scheduler\.(?P<name>[A-Z][A-Za-z0-9]*)")
NOT_OWN = {"triptych", "torch", "lightning", "pytorch_lightning", *sys.stdlib_module_names}
CODE = "needs a function as an argument; write a class of your own"
OTHERS = "needs other schedulers as arguments; write a class of your own"
PLATEAU = "needs a validation metric; write a class of your own"
LBFGS = "evaluates the loss several times per step, each time with new noise; choose adamw or sgd"
BASE = "is an abstract base class; choose a subclass"
REASONS = {  # {class of torch or Lightning that is not allowed: the reason}
    "torch.optim.lr_scheduler.LambdaLR": CODE,
    "torch.optim.lr_scheduler.MultiplicativeLR": CODE,
    "torch.optim.lr_scheduler.ChainedScheduler": OTHERS,
    "torch.optim.lr_scheduler.SequentialLR": OTHERS,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": PLATEAU,
    "torch.optim.lr_scheduler.LRScheduler": BASE,
    "torch.optim.Optimizer": BASE,
    "torch.optim.LBFGS": LBFGS,
    "torch.optim.SparseAdam": (
        "needs sparse gradients, which no network here has; choose adamw or sgd"
    ),
    **{f"{LIGHTNINGS}{name}": reason for name, reason in CALLBACKS.items()},
    **{f"lightning.pytorch.callbacks.{name}": reason for name, reason in CALLBACKS.items()},
}


def check_name(target: Any, where: str = "") -> str:
    """Return ``target`` if a configuration may name this class; otherwise raise UserError."""
    if not isinstance(target, str) or not NAME.fullmatch(target):
        shown = ascii(target)[:100]
        raise UserError(f"{_key_prefix(where)}={shown}: must be the dotted name of a class")
    if target in REASONS:
        raise UserError(f"{_key_prefix(where)}={target}: {REASONS[target]}")
    if not _is_allowed_target(target):
        raise _not_allowed_error(target, where)
    return target


def _is_allowed_target(target: str) -> bool:
    """Return whether a configuration may name this class, without importing it."""
    if is_trusted(target) or target in HOMES:
        return True
    if OPTIMISER.fullmatch(target) or SCHEDULER.fullmatch(target):
        return arguments(target) is not None
    return target.startswith(OURS) and is_listed(target)


def import_class(target: Any, where: str = "") -> type:
    """Import the class with this name.

    Raises UserError if it is not allowed, or if the name refers to something else.
    """
    module, _, name = defining_name(check_name(target, where)).rpartition(".")
    module = HOMES.get(target, module)
    try:
        owner = vars(import_module(module)).get(name)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"cannot be imported: {line}{error_location(error)}"
        raise UserError(f"{_key_prefix(where)}={target}: {problem}") from error
    if not isinstance(owner, type) or not _is_defined_in(owner, target, module):
        raise UserError(f"{_key_prefix(where)}={target}: {module} defines no class of that name")
    return owner


def _is_defined_in(owner: type, target: str, module: str) -> bool:
    """Return whether ``target`` is the place where the class is defined, not an imported name."""
    if owner.__qualname__ != target.rpartition(".")[2]:
        return False
    if is_trusted(target):
        return is_trusted(owner.__module__)
    return is_within_package(owner.__module__, module)


def _key_prefix(where: str) -> str:
    """Return the dotted key of a ``_target_`` in the group ``where``."""
    return f"{where}._target_".lstrip(".")


def _not_allowed_error(target: str, where: str) -> UserError:
    """Return the error for a class that a configuration must not name, with a suggestion."""
    problem = f"{_key_prefix(where)}={target[:100]}: class is not allowed in a configuration"
    listed = (name for name in read_table()["classes"] if _is_allowed_target(name))
    close = difflib.get_close_matches(target[:100], listed, n=1, cutoff=0.75)
    if close:
        return UserError(f"{problem}; did you mean {close[0]}?")
    package = target.partition(".")[0]
    if package not in NOT_OWN:
        packages = ",".join([*trusted_packages(), package])
        fix = f"to allow your own code, export TRIPTYCH_TRUST={packages}"
    else:
        fix = "see docs/security.md for the allowed classes"
    return UserError(f"{problem}; {fix}")
