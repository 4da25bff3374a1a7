"""Print ``signatures.json``, the arguments of all classes that a configuration may name.

``make signatures`` writes it after an argument or a class was added; a test checks it.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import triptych
from triptych import declare
from triptych.config.schema import Optimizer, Trainer
from triptych.config.signatures import REQUIRED, Argument, Arguments, inspect_class
from triptych.config.trust import HOMES, OPTIMISER, ROOMS

PLUGINS = ("hydra_plugins.triptych_rounds.sweeper", "hydra_plugins.triptych_search.sweeper")
BASES = (
    "pytorch_lightning.Callback",
    "pytorch_lightning.loggers.Logger",
    "torch.nn.Module",
    "torchmetrics.Metric",
)
TORCH = {"torch.optim": "Optimizer", "torch.optim.lr_scheduler": "LRScheduler"}
ALIASES = {getattr(declare, name): name for name in ("Count", "FilePath", "Seed", "Share", "Whole")}
PLAIN = (bool, int, float, str, *declare.LISTS, dict, declare.PathLike)


def make_table() -> str:
    """Return the text of the table."""
    classes = dict(_classes())
    entries = {name: _entry(inspect_class(owner)) for name, owner in sorted(classes.items())}
    for name, entry in entries.items():
        if OPTIMISER.fullmatch(name):
            declared = _texts(Optimizer)
            entry["kinds"] |= {key: declared[key] for key in declared if key in entry["kinds"]}
    entries["pytorch_lightning.Trainer"] = {"kinds": _texts(Trainer), "defaults": {}, "more": False}
    table = {"torch": torch_version(), "aliases": dict(sorted(_aliases())), "classes": entries}
    return json.dumps(table, indent=1) + "\n"


def torch_version() -> str:
    """Return torch's version without its build, as 2.9.0 of 2.9.0+cpu."""
    return version("torch").partition("+")[0]


def _rooms() -> Iterator[ModuleType]:
    """Import all modules whose classes a configuration may name."""
    for room in ROOMS:
        package = importlib.import_module(f"{triptych.__name__}.{room}")
        yield package
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(module.name)


def _public_classes(module: ModuleType) -> Iterator[tuple[str, type]]:
    for name, value in vars(module).items():
        if not isinstance(value, type) or issubclass(value, BaseException):
            continue
        if value.__qualname__ == name and not name.startswith("_"):
            yield name, value


def _classes() -> Iterator[tuple[str, type]]:
    """Yield each class with the name by which configurations know it."""
    for module in [*_rooms(), *map(importlib.import_module, PLUGINS)]:
        for name, owner in _public_classes(module):
            if owner.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", owner
    for module_name, base in TORCH.items():
        module = importlib.import_module(module_name)
        for name, owner in _public_classes(module):
            if issubclass(owner, getattr(module, base)):
                yield f"{module_name}.{name}", owner
    for target in (*HOMES, *BASES):
        module_name, _, name = target.rpartition(".")
        yield target, getattr(importlib.import_module(module_name), name)


def _aliases() -> Iterator[tuple[str, str]]:
    """Yield the names that packages give to their modules' classes, as ``...sampler.DDIM``."""
    for module in _rooms():
        for name, owner in _public_classes(module):
            if owner.__module__.startswith(f"{module.__name__}."):
                yield f"{module.__name__}.{name}", f"{owner.__module__}.{name}"


def _entry(arguments: Arguments) -> dict[str, Any]:
    named = arguments.named
    optional = [name for name, argument in named.items() if argument.default is not REQUIRED]
    return {
        "kinds": {name: _text(argument.kind) for name, argument in named.items()},
        "defaults": {name: _plain(named[name]) for name in optional},
        "more": arguments.takes_any,
    }


def _texts(table: type) -> dict[str, str]:
    """Return the declarations of schema.py's table of arguments."""
    return {key: _text(kind) for key, kind in get_type_hints(table, include_extras=True).items()}


def _plain(argument: Argument) -> Any:
    """Return a default as JSON has it; None for an object, which no configuration can name."""
    try:
        return json.loads(json.dumps(argument.default))
    except TypeError:
        return None


def _text(kind: Any) -> str:
    """Write a type in the names of ``declare``; "Any" where they do not describe it."""
    inner, marks = declare.unwrap(kind)
    if marks:
        return ALIASES.get(kind) or f"Annotated[{_text(inner)}, {', '.join(map(_mark, marks))}]"
    members = declare.alternatives(inner)
    if len(members) > 1:
        return " | ".join(map(_text, members))
    if inner in (None, type(None)):
        return "None"
    if inner is Ellipsis:
        return "..."
    if get_origin(inner) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(inner)))}]"
    origin = get_origin(inner) or inner
    if origin not in PLAIN:
        return "Any"
    items = ", ".join(map(_text, get_args(inner)))
    return f"{origin.__name__}[{items}]" if items else origin.__name__


def _mark(mark: Any) -> str:
    return f"Role.{mark.name}" if isinstance(mark, declare.Role) else repr(mark)


if __name__ == "__main__":
    print(make_table(), end="")
