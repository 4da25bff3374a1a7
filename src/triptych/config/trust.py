"""Decide which classes a configuration, perhaps a stranger's, may name and import.

Accepted is a class that is *defined* in one of the rooms below, under the name that its own file gives it; an
optimiser of ``torch.optim``, a schedule of ``torch.optim.lr_scheduler``; Lightning's Trainer and the
callbacks listed, with plain arguments; and any class defined in a package that the owner of this clone
trusts (``TRIPTYCH_TRUST=a,b`` or, in pyproject.toml, ``[tool.triptych] trust = ["a", "b"]``). No functions,
nested names, or what a module merely imports.

``check_name`` reads the package's own files and imports nothing. ``import_class`` imports that one module,
and looks whether the object is the class that it seemed.
"""

import difflib
import importlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from triptych.config.habits import CALLBACKS
from triptych.config.own_code import is_trusted, lies_in, raised_at, remember_imported
from triptych.config.own_code import trusted as trusted
from triptych.config.source import class_names, full_name
from triptych.errors import UserError

PACKAGE = Path(__file__).parents[1]
ROOMS = ("data", "networks", "diffusion", "models", "callbacks")
LIGHTNINGS = "pytorch_lightning.callbacks."
HOMES = {  # of classes of Lightning's that write nowhere and change no weights
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
NOT_PLAIN = {  # of those, with the reason
    **dict.fromkeys(("LambdaLR", "MultiplicativeLR"), "takes code; write a class of your own"),
    **dict.fromkeys(("ChainedScheduler", "SequentialLR"), "takes other schedules; write a class of your own"),
    "ReduceLROnPlateau": "waits for a figure of validation; write a class of your own",
    **dict.fromkeys(("LRScheduler", "Optimizer"), "is what the others are made of"),
    "LBFGS": "evaluates the loss several times a step, which draws anew each time; choose adamw or sgd",
    "SparseAdam": "needs sparse gradients, which no network here has; choose adamw or sgd",
}


def check_name(target: Any, where: str = "") -> str:
    """Check, importing nothing, that a class of that name may be built; return the name, or UserError."""
    if not isinstance(target, str) or not NAME.fullmatch(target):
        raise _refused(target, where, "not the dotted name of a class")
    of_torch = OPTIMISER.fullmatch(target) or SCHEDULER.fullmatch(target)
    if of_torch and not full_name(target):
        module = target.rpartition(".")[0]
        raise _refused(target, where, f"{module} has no class of that name{_near_in(module, target)}")
    if of_torch and (reason := NOT_PLAIN.get(target.rpartition(".")[2])):
        raise UserError(f"{_key(target, where)}: {reason}")
    if target in HOMES or of_torch or is_trusted(target):
        return target
    if not _home(target):
        raise _refused(target, where, f"not a class that a configuration may name{_near(target)}")
    return target


def import_class(target: Any, where: str = "") -> type:
    """Import the class of that name; UserError if it may not be built, or leads to something else."""
    module, _, name = check_name(target, where).rpartition(".")
    module = HOMES.get(target) or _home(target) or module  # of ours or Lightning's, the one that defines it
    try:
        cls = vars(importlib.import_module(module)).get(name)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_key(target, where)}: cannot be imported: {line}{raised_at(error)}") from error
    if is_trusted(target):
        remember_imported()
    if not isinstance(cls, type) or issubclass(cls, BaseException) or not _is_home(cls, target, module):
        raise _refused(target, where, f"{module} defines no class of that name{_near_in(module, target)}")
    return cls


def _is_home(cls: type, target: str, module: str) -> bool:
    """Return whether the class is defined under its name, and is no alias of another."""
    if cls.__qualname__ != target.rpartition(".")[2]:
        return False
    if is_trusted(target):
        return is_trusted(cls.__module__)
    if OPTIMISER.fullmatch(target):
        from torch.optim import Optimizer

        return issubclass(cls, Optimizer) and lies_in(cls.__module__, "torch.optim")
    if SCHEDULER.fullmatch(target):
        from torch.optim.lr_scheduler import LRScheduler

        return issubclass(cls, LRScheduler) and cls.__module__ == module
    return cls.__module__ == module


@cache
def _home(target: str) -> str:
    """Return our module that defines ``target``, also if a package names it (``...sampler.DDIM``); or ""."""
    module, _, name = target.rpartition(".")
    if not any(lies_in(module, f"triptych.{room}") for room in ROOMS):
        return ""
    home, _, defined = full_name(target).rpartition(".")
    return home if defined == name and lies_in(home, module) else ""


def _near(target: str) -> str:
    """Return ", did you mean NAME?" for a class of ours or Lightning's; "" if none is near."""
    module, _, short = target.rpartition(".")
    if module.endswith(("lightning.callbacks", "lightning.pytorch.callbacks")):
        if short in CALLBACKS:
            return f": {CALLBACKS[short]}"
        target = LIGHTNINGS + short
    elif not module.startswith("triptych.") or module.count(".") > 3 or not short[:1].isupper():
        return ""
    close = difflib.get_close_matches(target, _known(), n=1, cutoff=0.85)
    return f", did you mean {close[0]}?" if close else ""


@cache
def _known() -> list[str]:
    files = [file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py"))]
    modules = [".".join(("triptych", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    ours = (f"{module}.{name}" for module in modules for name in class_names(module))
    return [*HOMES, *filter(_home, ours)]


def _near_in(module: str, target: str) -> str:
    known = {name.lower(): name for name in class_names(module)}
    close = difflib.get_close_matches(target.rpartition(".")[2].lower(), known, n=1)
    return f", did you mean {known[close[0]]}?" if close else ""


def _key(target: Any, where: str) -> str:
    plain = isinstance(target, str) and NAME.fullmatch(target)
    shown = target[:100] if plain else ascii(target)[:100]
    return f"{where}._target_={shown}" if where else f"_target_={shown}"


def _refused(target: Any, where: str, reason: str) -> UserError:
    if reason.endswith("?"):  # with a suggestion
        return UserError(f"{_key(target, where)}: {reason}")
    rooms = ", ".join(f"triptych.{room}" for room in ROOMS)
    rooms += f", {LIGHTNINGS[:-1]}" * where.startswith("callbacks")
    top, dot, _ = str(target).partition(".")
    own = "a class of a package in TRIPTYCH_TRUST"
    if dot and top.isidentifier() and top not in NOT_OWN and not is_trusted(target):
        own = f"for code of your own: export TRIPTYCH_TRUST={','.join([*trusted(), top])}"
    return UserError(
        f"{_key(target, where)}: {reason}; use a class defined in {rooms}, an optimiser of torch.optim, a "
        f"schedule of torch.optim.lr_scheduler, or {own}"
    )
