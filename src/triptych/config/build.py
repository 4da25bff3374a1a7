"""Build objects from plain configuration: through ``trust``, with errors of one line."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from pkgutil import resolve_name
from typing import Any

from triptych.config.habits import nearest
from triptych.config.keys import OPTIONS, find_key, of_class
from triptych.config.own_code import check_methods, defined_at, raised_at
from triptych.config.signatures import REQUIRED, inspect_class
from triptych.config.trust import HOMES, SCHEDULER, check_name, import_class
from triptych.declare import IsClass, alternatives, unwrap
from triptych.errors import UserError
from triptych.terminal import in_one_line

# what is handed to an object by the name of its argument, and where in a configuration it stands: an object
# that is described there, or a plain value; in the order in which they are built, which weights' draws follow
PARTS = {
    "seed": "seed",
    "schedule": "schedule",
    "process": "process",
    "objective_steps": "objective.steps",
    "output": "objective.output",
    "variance": "bound.variance",
    "decoder": "bound.decoder",
    "objective": "objective",
    "bound": "bound",
    "repeats": "bound.repeats",
    "val_repeats": "bound.val_repeats",
    "likelihood": "likelihood",
    "likelihood_items": "likelihood.items",
    "denoiser": "denoiser",
    "optimizer": "optimizer",
    "lr_schedule": "lr_schedule",
}
SHARED = frozenset(PARTS.values())
ADDED = ("augmentation", "callbacks", "metrics")  # groups of objects that are handed nothing


@cache
def _named_kinds(owner: type) -> Mapping[str, Any]:
    """Return the arguments of a class that accept a class's name, with the base of such classes."""
    kinds: dict[str, Any] = {}
    for name, argument in inspect_class(owner).named.items():
        for member in alternatives(unwrap(argument.kind)[0]):
            kind, marks = unwrap(member)
            if hasattr(kind, "named") or IsClass() in marks:
                kinds[name] = kind
    return kinds


def targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dictionary with a ``_target_`` in a plain config, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def check_names(config: Any, path: str = "") -> None:
    """Check each ``_target_`` as far as possible without importing it."""
    for where, node in targets(config, path):
        target = check_name(node["_target_"], where)
        for key, value in node.items():
            if key[:1] == "_" and key not in OPTIONS:
                fix = f"Hydra's own keys may be {', '.join(OPTIONS)}"
                raise UserError(f"{where}.{key}={repr(value)[:100]}: not an argument; {fix}")
            if (target in HOMES or SCHEDULER.fullmatch(target)) and key not in OPTIONS and not _scalar(value):
                raise UserError(f"{where}.{key}: must be a number, text or a list of them for {target}")


def keep_arguments(config: dict[str, Any], typed: Collection[str]) -> None:
    """Drop keys of a file that the typed ``_target_`` does not accept; of an optimizer all but ``lr``.

    AdamW's weight decay means something else to another class, whose own defaults its users know.
    """
    for group, node in targets(config, ""):
        if f"{group}._target_" not in typed:
            continue
        names, more = of_class(check_name(node["_target_"], group))
        for key in [] if more else list(node):
            at = f"{group}.{key}"
            unfit = key not in names or (group == "optimizer" and key != "lr")
            if unfit and key not in OPTIONS and at not in typed and at not in SHARED:
                del node[key]


def check_needed(config: dict[str, Any], typed: Collection[str]) -> None:
    """Raise UserError if a class that was typed in place of a file's needs a key that nothing gives."""
    for where, node in targets(config, ""):
        target = str(node["_target_"])
        if f"{where}._target_" in typed and (SCHEDULER.fullmatch(target) or where.split(".")[0] in ADDED):
            needed = (key for key, one in of_class(target)[0].items() if one.default is REQUIRED)
            if missing := next((key for key in needed if key not in node and key != "optimizer"), ""):
                raise UserError(f"{where}: {target} needs {where}.{missing}; type it too")


def check_targets(config: Any, path: str = "") -> None:
    """Check that each ``_target_`` is allowed for its node, and each key an argument of it."""
    check_names(config, path)
    for where, node in targets(config, path):
        target = node["_target_"]
        bases = find_key(where).bases
        if bases and not issubclass(import_class(target, where), tuple(map(resolve_name, bases))):
            raise UserError(f"{where}._target_={target}: use a class made from {' or '.join(bases)}")
        names, more = of_class(target)
        for key in node:
            if not (more or key in names or key in OPTIONS or f"{where}.{key}" in SHARED):
                shown = f"{where}.{key}={repr(node[key])[:100]}"
                raise UserError(f"{shown}: {target} has no such argument; {nearest(key, list(names))}")


class Dependencies:
    """Dependencies injected by argument name; each is built once.

    ``config``: all of it, resolved; its ``PARTS`` are built on first use. ``facts``: values by name, which
    take precedence over ``PARTS``. ``built``: objects that exist already, by place in ``config``.
    """

    def __init__(self, config: dict[str, Any], facts: dict[str, Any], built: dict[str, Any] | None = None):
        self.config, self.facts = config, facts
        self.built: dict[str, Any] = {} if built is None else built

    def __iter__(self) -> Iterator[str]:
        return iter([*self.facts, *(name for name in PARTS if self.node(PARTS[name]) not in (None, {}))])

    def __getitem__(self, name: str) -> Any:
        return self.facts[name] if name in self.facts else self.at(PARTS[name])

    def at(self, place: str) -> Any:
        """Return the value at a dotted key, built if it describes an object."""
        node = self.node(place)
        if place not in self.built and isinstance(node, dict | str):
            owner, _, key = place.rpartition(".")
            if owner:
                node = _described(node, place, import_class(self.node(f"{owner}._target_"), owner), key)
            self.built[place] = build(node, place, self)
        return self.built.get(place, node)

    def beside(self, kind: type) -> "Dependencies":
        """Return this table for parts of a model class, which may set ``outputs``."""
        outputs: Any = getattr(kind, "outputs", None)
        if not callable(outputs):
            return self
        reads = {name: self[name] for name in inspect.signature(outputs).parameters}
        return Dependencies(self.config, self.facts | {"outputs": outputs(**reads)}, self.built)

    def node(self, place: str) -> Any:
        """Return what stands at a dotted key; None for nothing."""
        node: Any = self.config
        for key in place.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node


def build(config: dict[str, Any], path: str, table: Dependencies | None = None, **extra: Any) -> Any:
    """Build the object that ``config`` describes; ``path`` is its dotted key, for messages.

    Arguments that neither ``config`` nor ``extra`` gives come from ``table``, by name. Text is not resolved,
    unless the argument's class has short names. UserError for whatever cannot be built.
    """
    if not isinstance(config, dict) or "_target_" not in config:
        raise _nameless(path)
    check_targets(config, path)
    return _make(config, path, table, extra)


def _nameless(place: str) -> UserError:
    return UserError(f"{place}: names no class; must be a group with _target_")


def _make(node: Any, place: str, table: Dependencies | None, extra: dict[str, Any]) -> Any:
    """Build all objects within ``node``: injected dependencies first, then nested ones."""
    if isinstance(node, list):
        return [_make(value, f"{place}[{i}]", table, {}) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        if find_key(place).bases:
            raise _nameless(place)
        return {key: _make(value, f"{place}.{key}", table, {}) for key, value in node.items()}
    kind = import_class(node["_target_"], place)
    names, more = inspect_class(kind)
    # torch's schedules and those made from them, whose optimiser there is not yet
    later = any(base.__module__ == "torch.optim.lr_scheduler" for base in kind.__mro__)
    arguments = {} if later else _inject(kind, names, {*node, *extra}, table)
    below = None if table is None else table.beside(kind)
    for key, value in node.items():
        at = f"{place}.{key}"
        if key in OPTIONS or key in extra or not (more or key in names):  # it stands here for others
            continue
        if below is not None and (at in SHARED or at in below.built):
            arguments[key] = below.at(at)
        else:
            arguments[key] = _make(_described(value, at, kind, key), at, below, {})
    if node.get("_partial_") or later:
        return partial(kind, **arguments, **extra)
    if place == "optimizer":
        raise UserError("optimizer._partial_: must be true, as the weights are handed over later")
    network = (resolve_name("triptych.networks.base.Network"),) if place == "denoiser.network" else ()
    check_methods(kind, place, kind.__mro__ + network)
    try:
        return kind(**arguments, **extra)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_cause(error, place, defined_at(kind))) from error


def _inject(kind: type, names: dict[str, Any], own: set[str], table: Dependencies | None) -> dict[str, Any]:
    if table is None:
        return {}
    own = own | set(getattr(kind, "ignores", ()))
    handed = {name: table[name] for name in table if name in names and name not in own}
    for name, argument in names.items():
        if name in PARTS and name not in {*handed, *own} and argument.default is REQUIRED:
            group = PARTS[name].split(".")[0]
            raise UserError(f"{group}=none: {kind.__name__} needs one; choose another {group}")
    return handed


def _described(value: Any, place: str, owner: type, key: str) -> Any:
    """Expand a class's name, if ``owner``'s argument accepts one."""
    kind = _named_kinds(owner).get(key) if isinstance(value, str) else None
    if kind is None or not ("." in value or hasattr(kind, "named")):
        return value
    if "." in value:
        named = import_class(value, place)
    elif value in kind.named:
        named = kind.named[value]
    else:
        raise UserError(f"{place}={value!r}: must be one of {', '.join(kind.named)}")
    if not issubclass(named, kind):
        raise UserError(f"{place}={value}: use a class made from {kind.__module__}.{kind.__name__}")
    return {"_target_": value if "." in value else f"{named.__module__}.{named.__qualname__}"}


def _scalar(value: Any) -> bool:
    if isinstance(value, list):
        return all(_scalar(v) and not isinstance(v, list) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def _cause(error: Exception, path: str, at: str) -> str:
    """Return the message of the innermost exception, on one line, with its key and user code, else ``at``."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]  # may be None by its type
    message = (in_one_line(error) or type(error).__name__) + (raised_at(error) or at)
    return message if path and message.startswith(path.split(".")[0]) else f"{path}: {message}"
