"""Build objects of allowed classes from a plain configuration, with one-line errors."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from pkgutil import resolve_name
from typing import Any

from triptych.config.habits import suggest_name
from triptych.config.keys import OPTIONS, class_arguments, find_key, join
from triptych.config.own_code import definition_location, error_location
from triptych.config.signatures import REQUIRED, inspect_class
from triptych.config.trust import HOMES, check_name, import_class
from triptych.declare import IsClass, alternatives, unwrap
from triptych.errors import UserError
from triptych.terminal import as_one_line

# {argument name: configuration key whose object or value is injected}. Objects are built in this
# order, because they draw their initial weights from one generator.
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
SHARED = frozenset(PARTS.values())  # keys whose objects are built once and injected


@cache
def _arguments_with_class_names(owner: type) -> Mapping[str, Any]:
    """Return {argument: base class} for the arguments of a class that accept a class name."""
    kinds: dict[str, Any] = {}
    for name, argument in inspect_class(owner).named.items():
        for member in alternatives(unwrap(argument.kind)[0]):
            kind, marks = unwrap(member)
            if hasattr(kind, "named") or IsClass() in marks:
                kinds[name] = kind
    return kinds


def nodes_with_target(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted path, dictionary) of every dictionary with a ``_target_`` in a plain config."""
    if isinstance(node, list):
        for i, value in enumerate(node):
            yield from nodes_with_target(value, f"{path}[{i}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        yield path, node
    for key, value in node.items():
        yield from nodes_with_target(value, join(path, key))


def check_names(config: Any, path: str = "") -> None:
    """Check each ``_target_`` of a configuration by its name alone, without importing the class.

    Raises UserError if the class is not allowed, or if its node has keys of Hydra or nested groups
    that are not allowed.
    """
    for place, node in nodes_with_target(config, path):
        target = check_name(node["_target_"], place)
        unknown = [key for key in node if str(key).startswith("_") and key not in OPTIONS]
        if unknown:
            raise UserError(
                f"{join(place, unknown[0])}: unsupported key of Hydra; use only "
                f"{', '.join(OPTIONS)}"
            )
        nested = [key for key, value in node.items() if isinstance(value, dict)]
        if nested and target in HOMES:
            raise UserError(f"{join(place, nested[0])}: must be a plain value for {target}")


def drop_unaccepted_arguments(config: dict[str, Any], typed_keys: Collection[str]) -> None:
    """Drop keys from configuration files that the class in a typed override does not accept.

    Such a class replaces the ``_target_`` of a file, whose other keys remain. If another optimizer
    was typed, only ``lr`` remains: other keys of AdamW, such as its weight decay, have a different
    meaning there. ``typed_keys`` are the keys of the overrides.
    """
    for group, node in nodes_with_target(config, ""):
        if f"{group}._target_" not in typed_keys:
            continue
        names, takes_any = class_arguments(check_name(node["_target_"], group))
        if takes_any:
            continue
        kept = {"lr"} if group == "optimizer" else {*names}
        kept = {*kept, *OPTIONS}
        for key in [*node]:
            place = f"{group}.{key}"
            if key not in kept and place not in typed_keys and place not in SHARED:
                del node[key]


def check_targets(config: Any, path: str = "") -> None:
    """Check that each ``_target_`` is allowed in its group and accepts all other keys there."""
    check_names(config, path)
    for place, node in nodes_with_target(config, path):
        check_base(node["_target_"], place)
        check_arguments(node, place)


def check_base(target: str, dotted_key: str) -> None:
    """Raise UserError if the class ``target`` does not derive from the base class of its group."""
    bases = find_key(dotted_key).bases
    if bases and not issubclass(import_class(target, dotted_key), tuple(map(resolve_name, bases))):
        raise UserError(
            f"{dotted_key}._target_={target}: must be a subclass of {' or '.join(bases)}"
        )


def check_arguments(node: dict[str, Any], dotted_key: str) -> None:
    """Raise UserError for a key beside ``_target_`` that the class does not accept."""
    target = node["_target_"]
    names, takes_any = class_arguments(target)
    if takes_any:
        return
    for key in node:
        if key not in names and key not in OPTIONS and f"{dotted_key}.{key}" not in SHARED:
            raise UserError(
                f"{dotted_key}.{key}={repr(node[key])[:100]}: {target} has no such argument; "
                f"{suggest_name(key, list(names))}"
            )


class Dependencies:
    """Objects and values that are injected into constructors by argument name, as a mapping.

    ``config``: the whole resolved configuration; ``PARTS`` gives the key of each argument in it,
    whose object is built once, on first use. ``facts``: {argument name: value}, which take
    precedence over ``PARTS``. ``built``: {dotted key: object that exists already}.
    """

    def __init__(
        self, config: dict[str, Any], facts: dict[str, Any], built: dict[str, Any] | None = None
    ):
        self.config, self.facts = config, facts
        self.built: dict[str, Any] = {} if built is None else built

    def __iter__(self) -> Iterator[str]:
        yield from self.facts
        for name, place in PARTS.items():
            if self.config_at(place) not in (None, {}):
                yield name

    def __getitem__(self, name: str) -> Any:
        return self.facts[name] if name in self.facts else self.build_at(PARTS[name])

    def build_at(self, dotted_key: str) -> Any:
        """Return the value at a dotted key, built if it describes an object."""
        if dotted_key in self.built:
            return self.built[dotted_key]
        node: Any = self.config_at(dotted_key)
        owner, _, key = dotted_key.rpartition(".")
        if owner and isinstance(node, str):
            node = _expand_class_name(
                node, dotted_key, import_class(self.config_at(f"{owner}._target_"), owner), key
            )
        if not isinstance(node, dict | str):
            return node
        self.built[dotted_key] = build(node, dotted_key, self)
        return self.built[dotted_key]

    def for_parts_of(self, owner: type) -> "Dependencies":
        """Return these dependencies for the parts of a model of class ``owner``.

        If ``owner`` has a function ``outputs``, its value is injected, too, as ``outputs``.
        """
        outputs: Any = getattr(owner, "outputs", None)
        if self is NO_TABLE or not callable(outputs):
            return self
        arguments = {name: self[name] for name in inspect.signature(outputs).parameters}
        return Dependencies(self.config, self.facts | {"outputs": outputs(**arguments)}, self.built)

    def config_at(self, dotted_key: str) -> Any:
        """Return the configuration's value at a dotted key; None if there is none."""
        node: Any = self.config
        for key in dotted_key.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node


NO_TABLE = Dependencies({}, {})  # a table without any object to inject


def build(config: Any, path: str, table: Dependencies = NO_TABLE, **extra: Any) -> Any:
    """Build the object that ``config`` describes; ``path`` is its dotted key, for messages.

    Arguments that are in neither ``config`` nor ``extra`` are injected from ``table`` by name. A
    text is built as an object only if its argument accepts the name of a class. Raises UserError
    for anything that cannot be built.
    """
    if not isinstance(config, dict) or "_target_" not in config:
        raise UserError(f"{path}: has no class; pass a group with _target_=CLASS")
    check_targets(config, path)
    return _build_object(config, path, table, extra)


def _build_value(node: Any, dotted_key: str, table: Dependencies) -> Any:
    """Build all objects within ``node``, a configuration's value; return other values unchanged."""
    if isinstance(node, list):
        return [_build_value(value, f"{dotted_key}[{i}]", table) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" in node:
        return _build_object(node, dotted_key, table, {})
    if find_key(dotted_key).bases:
        raise UserError(f"{dotted_key}: has no class; pass a group with _target_=CLASS")
    return {key: _build_value(value, f"{dotted_key}.{key}", table) for key, value in node.items()}


def _build_object(
    node: dict[str, Any], dotted_key: str, table: Dependencies, extra: dict[str, Any]
) -> Any:
    """Build an object after its injected arguments and its nested objects, in this order."""
    owner = import_class(node["_target_"], dotted_key)
    needs_optimizer = any(base.__module__ == "torch.optim.lr_scheduler" for base in owner.__mro__)
    arguments = {} if needs_optimizer else _injected_arguments(owner, {*node, *extra}, table)
    arguments |= _build_arguments(owner, node, dotted_key, table.for_parts_of(owner), extra) | extra
    if node.get("_partial_") or needs_optimizer:
        return partial(owner, **arguments)
    try:
        return owner(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_error_cause(error, dotted_key, definition_location(owner))) from error


def _build_arguments(
    owner: type, node: dict[str, Any], dotted_key: str, table: Dependencies, extra: Collection[str]
) -> dict[str, Any]:
    """Build those arguments of the class ``owner`` that its configuration ``node`` sets."""
    names, takes_any = inspect_class(owner)
    arguments = {}
    for key, value in node.items():
        if key in OPTIONS or key in extra:
            continue
        if key not in names and not takes_any:  # Another class of this group accepts the key.
            continue
        path = f"{dotted_key}.{key}"
        if path in table.built or (path in SHARED and table is not NO_TABLE):
            arguments[key] = table.build_at(path)
        else:
            arguments[key] = _build_value(_expand_class_name(value, path, owner, key), path, table)
    return arguments


def _injected_arguments(
    owner: type, nested_arguments: set[str], table: Dependencies
) -> dict[str, Any]:
    """Return the arguments of the class ``owner`` that ``table`` injects.

    ``nested_arguments`` are set by the configuration and not injected. Raises UserError if the
    configuration has no object for a required argument.
    """
    if table is NO_TABLE:
        return {}
    named = {**inspect_class(owner).named}
    for name in nested_arguments.union(getattr(owner, "ignores", ())):
        named.pop(name, None)
    injected = {name: table[name] for name in table if name in named}
    for name, argument in named.items():
        if name in PARTS and name not in injected and argument.default is REQUIRED:
            group = PARTS[name].split(".")[0]
            raise UserError(
                f"{group}=none: not allowed with {owner.__name__}; choose another {group}"
            )
    return injected


def _expand_class_name(value: Any, dotted_key: str, owner: type, key: str) -> Any:
    """Replace a class name by {"_target_": path of the class}, if argument ``key`` accepts names.

    Return any other ``value`` unchanged.
    """
    base = _arguments_with_class_names(owner).get(key)
    if base is None or not isinstance(value, str):
        return value
    short_names = getattr(base, "named", {})
    if "." in value:
        named = import_class(value, dotted_key)
    elif not short_names:
        return value
    elif value in short_names:
        named = short_names[value]
    else:
        raise UserError(f"{dotted_key}={value!r}: must be one of {', '.join(short_names)}")
    if not issubclass(named, base):
        raise UserError(
            f"{dotted_key}={value}: must be a subclass of {base.__module__}.{base.__name__}"
        )
    return {"_target_": value if "." in value else f"{named.__module__}.{named.__qualname__}"}


def _error_cause(error: BaseException, path: str, dotted_key: str) -> str:
    """Return the innermost exception's message in one line, with the key and the place in code."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = (as_one_line(error) or type(error).__name__) + (error_location(error) or dotted_key)
    if path and message.startswith(path.split(".")[0]):
        return message
    return f"{path}: {message}"
