"""Look up the arguments of a class without importing torch.

``signatures.json`` lists our classes and those of torch and Lightning. ``make signatures`` writes
it (``docs/signatures.py``), and a test fails if it is out of date. A class of a trusted user
package is imported and inspected in the same way.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from triptych import declare
from triptych.config.own_code import is_trusted

TABLE = Path(__file__).with_name("signatures.json")
REQUIRED = object()  # stands for a missing default


class Argument(NamedTuple):
    """An argument of a class: its type (``Any`` without annotation) and its default."""

    kind: Any
    default: Any = REQUIRED


class Arguments(NamedTuple):
    """The arguments that a class accepts, including those that it passes on to its parents."""

    named: dict[str, Argument]
    takes_any: bool  # whether it accepts **kwargs beyond the named arguments


UNKNOWN = Arguments({}, True)


@cache
def read_table() -> dict[str, Any]:
    """Return the table of signatures: classes, aliases of class names, and torch's version."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def defining_name(target: str) -> str:
    """Return a class's name in the module that defines it, for a name that a package re-exports.

    Example: "triptych.diffusion.sampler.DDIM" becomes "triptych.diffusion.sampler.ode.DDIM".
    """
    return str(read_table()["aliases"].get(target, target))


def is_listed(target: str) -> bool:
    """Return whether the table of signatures has this class, perhaps under another name."""
    return defining_name(target) in read_table()["classes"]


def arguments(target: str) -> Arguments | None:
    """Return the arguments of the class ``target``; None if it is unknown or not trusted."""
    if is_listed(target):
        return _signature_from_table(defining_name(target))
    if is_trusted(target) or target.startswith("torch.optim."):
        return _signature_from_import(target)
    return None


@cache
def _signature_from_table(name: str) -> Arguments:
    """Return the arguments of a class in the table; their types are evaluated in ``declare``."""
    entry = read_table()["classes"][name]
    named = {}
    for argument, kind in entry["kinds"].items():
        default = entry["defaults"].get(argument, REQUIRED)
        named[argument] = Argument(eval(kind, vars(declare)), default)
    return Arguments(named, entry["more"])


def _signature_from_import(target: str) -> Arguments | None:
    """Import a user's class and return its arguments; None if it cannot be imported."""
    module, _, name = target.rpartition(".")
    try:
        owner = getattr(import_module(module), name)
    except Exception:  # building the class reports the error
        return None
    return inspect_class(owner) if isinstance(owner, type) else None


@cache
def inspect_class(owner: type) -> Arguments:
    """Return the arguments of a class, including those that it passes on to its parents.

    An argument without a declared type has the type of the same argument of a parent.
    """
    named: dict[str, Argument] = {}
    passes_on = True
    parents = owner.__mro__[:-1]  # all but object
    inits = [vars(parent)["__init__"] for parent in parents if "__init__" in vars(parent)]
    for init in inits:
        for name, argument in _declared_arguments(init):
            if name not in named:
                if passes_on:
                    named[name] = argument
            elif not declare.is_declaration(named[name].kind) and argument.kind is not Any:
                named[name] = named[name]._replace(kind=argument.kind)
        passes_on = passes_on and _takes_keywords(init)
    return Arguments(named, passes_on and bool(inits))


def _declared_arguments(init: Callable[..., Any]) -> Iterator[tuple[str, Argument]]:
    """Yield (name, argument) of the parameters of an ``__init__``, except *args and **kwargs."""
    for parameter in [*inspect.signature(init).parameters.values()][1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        yield parameter.name, Argument(_annotation_type(init, parameter.annotation), default)


def _takes_keywords(init: Callable[..., Any]) -> bool:
    """Return whether an ``__init__`` has a parameter **kwargs."""
    parameters = inspect.signature(init).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _annotation_type(init: Callable[..., Any], annotation: Any) -> Any:
    """Return the type that an annotation names; ``Any`` if it cannot be evaluated at run time."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, getattr(inspect.unwrap(init), "__globals__", {}))
    except (NameError, AttributeError, TypeError):
        return Any
