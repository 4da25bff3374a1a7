"""Look up the declaration of a key, in ``schema.py`` or its class: type, role and default."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, is_typeddict

from triptych.config.habits import advice_line
from triptych.config.schema import COMMANDS, Base, ModelKeys, Train
from triptych.config.signatures import REQUIRED, UNKNOWN, Arguments, arguments
from triptych.config.source import config_folders
from triptych.config.trust import check_name, trusted_packages
from triptych.declare import (
    Role,
    alternatives,
    annotated_metadata,
    is_declaration,
    is_valid_value,
    literal_values,
    type_error_line,
    unwrap,
)
from triptych.errors import UserError

# Groups whose files may set any key.
FREE_GROUPS = ("experiment", "ablation", "paper", "debug", "local", "hparams_search")
TARGET = re.compile(r"^( *)_target_: *([\w.]+)", re.MULTILINE)
M = TypeVar("M")
OPTIONS = ("_target_", "_partial_", "_convert_")  # keys of Hydra's instantiate that a node may have
MODEL_KEYS = tuple(ModelKeys.__annotations__)  # top-level keys that define the model


class Key(NamedTuple):
    """The declaration of a key: its type (``Any`` if undeclared), its role and its default."""

    kind: Any = Any
    role: Role = Role.IDENTITY
    default: Any = REQUIRED

    def nested(self, kind: Any, default: Any = REQUIRED) -> "Key":
        """Return the declaration of a key within this group, with the type ``kind``.

        Its role is the one in ``kind``, or else this group's role.
        """
        return Key(kind, Key(kind).find_annotation(Role) or self.role, default)

    def find_annotation(self, kind: type[M]) -> M | None:
        """Return the ``Annotated`` metadata of class ``kind``, such as a ``Unit``; or None."""
        return next(
            (mark for mark in annotated_metadata(self.kind) if isinstance(mark, kind)), None
        )

    @property
    def bases(self) -> tuple[str, ...]:
        """The names of base classes for a group's ``_target_``; () if any class is allowed."""
        base = self.find_annotation(Base)
        if base is None:
            return ()
        return base.target, *base.others

    @property
    def base(self) -> str:
        """The name of the class whose arguments a group without ``_target_`` has as keys; or ""."""
        return self.bases[0] if self.bases else ""


def join(path: str, name: Any) -> str:
    """Return the dotted key of ``name`` in the group ``path``; at the top (""), ``name`` alone."""
    return f"{path}.{name}" if path else str(name)


def override_keys(overrides: Iterable[str]) -> list[str]:
    """Return the keys of overrides; an override may be KEY=VALUE, +KEY=VALUE or ~KEY."""
    return [override.lstrip("+~").partition("=")[0] for override in overrides]


def declared_fields(kind: Any) -> dict[str, Any]:
    """Return {key: type} of a group declared as a TypedDict; {} for any other type."""
    for member in alternatives(unwrap(kind)[0]):
        table, _ = unwrap(member)
        if is_typeddict(table):
            return _type_hints(table)
    return {}


@cache
def _type_hints(table: type) -> dict[str, Any]:
    """Return {key: type} of a TypedDict, with ``Annotated`` but without ``NotRequired``."""
    hints = typing.get_type_hints(table, include_extras=True)
    return {name: _without_not_required(kind) for name, kind in hints.items()}


def _without_not_required(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.NotRequired else kind


def class_arguments(target: str) -> Arguments:
    """Return the arguments of the class ``target``; an unknown class may take any argument."""
    return arguments(target) or UNKNOWN


def nested_key(key: Key, name: str, target: str = "") -> Key | None:
    """Return the declaration of ``name`` in the group ``key``; None if it is not declared.

    ``target`` is the name of the class that the group describes, or "".
    """
    declared = declared_fields(key.kind)
    if name in declared:
        return key.nested(declared[name])
    for owner in (target, key.base):
        named = class_arguments(owner)[0]
        if name in named:
            return key.nested(*named[name])
    kind = _kind_of_values(key.kind)
    return None if kind is Any else key.nested(kind)


def _kind_of_values(kind: Any) -> Any:
    """Return the type of the values in a group whose keys are free; ``Any`` for any other group."""
    for member in alternatives(unwrap(kind)[0]):
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1]
    return Any


def accepts_key(key: Key, name: str, target: str = "") -> bool:
    """Return whether the group ``key`` may contain a key ``name``.

    ``target`` is the name of the class that the group describes, or "".
    """
    if nested_key(key, name, target) is not None:
        return True
    owner = target or key.base
    return class_arguments(owner)[1] if owner else not declared_fields(key.kind)


def declared_members(key: Key, target: str = "") -> dict[str, Key]:
    """Return {name: declaration} of a group's keys, including arguments of the class ``target``.

    Arguments that are injected are left out.
    """
    named = {name: key.nested(kind) for name, kind in declared_fields(key.kind).items()}
    for name, argument in class_arguments(target or key.base)[0].items():
        if name not in named and is_declaration(argument.kind):
            named[name] = key.nested(*argument)
    return named


def find_key(path: str, target: str = "", command: str = "train") -> Key:
    """Return the declaration of a command's dotted key.

    An undeclared key has its group's role, or else ``Role.IDENTITY``. ``target`` is the class of
    the group, if it is known; the classes that ``configs/`` names for the group are tried next.
    """
    key, parent = Key(COMMANDS[command]), ""
    *groups_above, last = path.replace("/", ".").split(".")
    for name in groups_above:
        key = _merged_member(key, name, named_classes(parent))
        parent = join(parent, name)
    known = named_classes(parent)
    return _merged_member(key, last, [allowed_target(target), *known] if target else known)


def _merged_member(key: Key, name: str, targets: list[str]) -> Key:
    """Return the declaration of ``name`` by the first class in ``targets`` that declares it.

    If none of these classes does, the key has any type and the role of its group ``key``.
    """
    for target in [*targets, ""]:
        member = nested_key(key, name, target)
        if member is not None:
            return member
    return key._replace(kind=Any)


def describe_null(key: str, value: str) -> str:
    """Return a value as a report shows it: "null" may be declared to have another text.

    The text is the one in the key's type ``Annotated[None, "..."]``.
    """
    if value != "null":
        return value
    for member in alternatives(unwrap(find_key(key).kind)[0]):
        kind, texts = unwrap(member)
        if kind is type(None) and texts:
            return str(texts[0])
    return value


@cache
def role(key: str, target: str = "") -> Role:
    """Return the role of a dotted key or config group.

    ``target``: the class of which the key is an argument, or "".
    """
    return find_key(key, target).role


def allowed_target(target: str) -> str:
    """Return ``target`` if a configuration may name this class, else ""."""
    return _allowed_target(target, trusted_packages())


@cache
def _allowed_target(target: str, packages: tuple[str, ...]) -> str:
    if target.startswith("hydra_plugins.triptych_"):
        return target
    try:
        return check_name(target)
    except UserError:
        return ""


def named_classes(dotted_key: str) -> list[str]:
    """Return the classes that config files set as ``_target_`` of a group, if they are allowed."""
    return _named_classes(dotted_key, config_folders(), trusted_packages())


@cache
def _named_classes(
    dotted_key: str, homes: tuple[Path, ...], packages: tuple[str, ...]
) -> list[str]:
    group, _, inner = dotted_key.partition(".")
    targets: dict[str, None] = {}  # in the order of the files
    for home in homes if group else ():
        for file in sorted((home / group).rglob("*.yaml")):
            folders_below = file.parent.relative_to(home).parts[1:]
            subgroup = ".".join(name for name in folders_below if name != "base")
            for indent, target in TARGET.findall(file.read_text("utf-8", "replace")):
                if indent and not inner:  # this class belongs to a group within this one
                    continue
                if subgroup == ("" if indent else inner) and allowed_target(target):
                    targets[target] = None
    return [*targets]


class Entry(NamedTuple):
    """A key in a configuration, with its value and the declaration of its group.

    ``place`` is the dotted key, ``name`` its last part.
    """

    place: str
    name: str
    value: Any
    group: Key
    target: str  # the group's class, if it names one

    @property
    def key(self) -> Key:
        """The declaration of the key; if there is none, one that allows any value."""
        return nested_key(self.group, self.name, self.target) or Key()


def entries(config: Any, group: Key, path: str = "") -> Iterator[Entry]:
    """Yield an ``Entry`` for every key of a configuration; a group comes before the keys in it."""
    target = allowed_target(str(config.get("_target_") or ""))
    for name, value in config.items():
        if name in OPTIONS:
            continue
        entry = Entry(join(path, name), str(name), value, group, target)
        yield entry
        if isinstance(value, dict):
            yield from entries(value, entry.key, entry.place)


def invalid_values(
    config: Any, group: Key, path: str = "", command: str = "train"
) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, error line) for every value of a configuration that is not allowed.

    ``group`` declares the configuration, which is at the dotted key ``path``.
    """
    for entry in entries(config, group, path):
        line = _value_error(entry.place, entry.key, entry.value, command)
        if line:
            yield entry.place, line


def _value_error(dotted_key: str, key: Key, value: Any, command: str) -> str:
    """Return the error line for a value; "" if its declaration allows it."""
    if declared_fields(key.kind):
        if isinstance(value, Mapping) or (value is None and "null" in literal_values(key.kind)):
            return ""
        names = ", ".join(declared_members(key))
        return f"{dotted_key}={repr(value)[:100]}: must be a group of keys ({names})"
    if is_valid_value(key.kind, value) or (isinstance(value, dict) and "_target_" in value):
        return ""  # the class that receives an object checks it
    return advice_line(dotted_key, str(value), command=command) or type_error_line(
        dotted_key, key.kind, value
    )


def check_values(config: Any, command: str = "train", path: str = "") -> None:
    """Raise UserError for the first value of a configuration that is not allowed.

    ``path`` is the dotted key of the configuration, or "" for a whole one.
    """
    key = find_key(path, command=command) if path else Key(COMMANDS[command])
    for _, line in invalid_values(config, key, path, command):
        raise UserError(line)


def groups() -> tuple[str, ...]:
    """Return the config groups that every run has."""
    hints = _type_hints(Train)
    required = [key for key in hints if key in Train.__required_keys__]
    return tuple(key for key in required if _is_group(unwrap(hints[key])[0]))


def _is_group(kind: Any) -> bool:
    """Return whether a type is that of a config group."""
    return is_typeddict(kind) or typing.get_origin(kind) is dict


def keys_with_roles(*roles: Role, key: Key | None = None, path: str = "") -> list[str]:
    """Return all dotted keys that have one of these roles, below ``key`` or of ``triptych-train``.

    A group with such a role is returned itself, without the keys in it.
    """
    names, group = [], key or Key(Train)
    for name, kind in declared_fields(group.kind).items():
        member, place = group.nested(kind), join(path, name)
        if member.role in roles:
            names.append(place)
        else:
            names += keys_with_roles(*roles, key=member, path=place)
    return names
