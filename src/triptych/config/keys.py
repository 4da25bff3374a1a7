"""Look up a key's declaration, by its class (``source.py``) or in ``schema.py``: type, range, unit, role."""

import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, is_typeddict

from triptych.config.habits import answer
from triptych.config.schema import CLASSES, COMMANDS, Base, ModelKeys, Optimizer, Train
from triptych.config.signatures import REQUIRED, UNKNOWN, Argument, arguments
from triptych.config.source import folders
from triptych.config.trust import OPTIMISER, check_name
from triptych.declare import Role, alternatives, fits, is_declaration, literal_values, marks, refusal, unwrap
from triptych.errors import UserError

FREE_GROUPS = ("experiment", "ablation", "paper", "debug", "local", "hparams_search")  # may set any key
TARGET = re.compile(r"^( *)_target_: *([\w.]+)", re.MULTILINE)
M = TypeVar("M")
OPTIONS = ("_target_", "_partial_", "_convert_")  # of what Hydra knows, all that is used
MODEL_KEYS = tuple(ModelKeys.__annotations__)  # top-level keys that define the model


class Key(NamedTuple):
    """One key: its kind as a type, ``Any`` where none is declared, its role and its default."""

    kind: Any = Any
    role: Role = Role.IDENTITY
    default: Any = REQUIRED

    def inside(self, kind: Any, default: Any = REQUIRED) -> "Key":
        """Return a nested key of that type; without a role of its own it inherits this one's."""
        return Key(kind, Key(kind).mark(Role) or self.role, default)

    def mark(self, kind: type[M]) -> M | None:
        """Return what the declaration says of that kind, as its ``Unit``; None for nothing."""
        return next((one for one in marks(self.kind) if isinstance(one, kind)), None)

    @property
    def bases(self) -> tuple[str, ...]:
        """Base classes that a group's ``_target_`` must derive from; () for any."""
        base = self.mark(Base) or Base("")
        return tuple(filter(None, (base.target, base.other)))

    @property
    def base(self) -> str:
        """The class that takes a group's keys if it has no ``_target_``; "" if there is none."""
        return next(iter(self.bases), "")


def fields(kind: Any) -> dict[str, Any]:
    """Return {key: type} of a declared group; {} for anything else."""
    for one in alternatives(unwrap(kind)[0]):
        if is_typeddict(inner := unwrap(one)[0]):
            return _hints(inner)
    return {}


@cache
def _hints(table: type) -> dict[str, Any]:
    every = typing.get_type_hints(table, include_extras=True).items()
    return {k: typing.get_args(v)[0] if typing.get_origin(v) is typing.NotRequired else v for k, v in every}


def of_class(target: str) -> tuple[dict[str, Argument], bool]:
    """Return ({argument: declaration}, whether it accepts others) of a class."""
    if target in CLASSES:
        return {key: Argument(kind) for key, kind in _hints(CLASSES[target]).items()}, False
    named, more = arguments(target) or UNKNOWN
    if OPTIMISER.fullmatch(target):
        common = _hints(Optimizer)
        named = {key: one._replace(kind=common.get(key, one.kind)) for key, one in named.items()}
    return named, more


def below(key: Key, name: str, target: str = "") -> Key | None:
    """Return the key ``name`` of a group that ``target`` describes; None if unknown."""
    declared = fields(key.kind)
    if name in declared:
        return key.inside(declared[name])
    for one in filter(None, (target, key.base)):
        if name in (known := of_class(one)[0]):
            return key.inside(*known[name])
    several = [one for one in alternatives(unwrap(key.kind)[0]) if typing.get_origin(one) is dict]
    inner = typing.get_args(several[0])[1] if several else Any
    return None if inner is Any else key.inside(inner)


def takes(key: Key, name: str, target: str = "") -> bool:
    """Return whether the group ``key``, described by ``target``, may have a key ``name``."""
    if below(key, name, target) is not None:
        return True
    owner = target or key.base
    return of_class(owner)[1] if owner else not fields(key.kind)


def members(key: Key, target: str = "") -> dict[str, Key]:
    """Return a group's declared keys; undeclared arguments are injected, not configured."""
    named = {name: key.inside(kind) for name, kind in fields(key.kind).items()}
    for name, one in of_class(target or key.base)[0].items():
        if name not in named and is_declaration(one.kind):
            named[name] = key.inside(one.kind, one.default)
    return named


def find_key(path: str, target: str = "", command: str = "train") -> Key:
    """Return the declaration of a command's dotted key; undeclared, it has its group's role, or identity.

    ``target``: the class whose argument it is, if known; then those that ``configs/`` names there.
    """
    at, names = Key(COMMANDS[command]), path.replace("/", ".").split(".")
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        known = [target] * (last and bool(target))
        known += _named(".".join(names[:depth]), folders()) if depth else []
        matches = (below(at, name, allowed(one)) for one in [*known, ""])
        at = next(filter(None, matches), at._replace(kind=Any))
    return at


def name_null(key: str, value: str) -> str:
    """Return ``value`` as reports name it: "null" by what it means, as ``Annotated[None, "..."]`` says."""
    kinds = map(unwrap, alternatives(unwrap(find_key(key).kind)[0]) if value == "null" else ())
    return next((text for inner, more in kinds if inner is type(None) for text in more), value)


def takes_names(key: str) -> bool:
    """Return whether a group holds objects under free names, as ``callbacks`` does."""
    member = below(find_key(key), "any")
    return member is not None and bool(member.base) and member.base != find_key(key).base


@cache
def role(key: str, target: str = "") -> Role:
    """Return the role of a dotted key or config group; ``target``: the class whose argument it is."""
    return find_key(key, target).role


def allowed(target: str) -> str:
    """Return ``target`` if its source may be parsed, else "": untrusted ones may name any file."""
    if target.startswith("hydra_plugins.triptych_"):
        return target
    try:
        return check_name(target) if target else ""
    except UserError:
        return ""


def named_classes(place: str) -> list[str]:
    """Return the allowed classes that config files name at a dotted key."""
    return [target for one in _named(place, folders()) if (target := allowed(one))]


@cache
def _named(place: str, among: tuple[Path, ...]) -> list[str]:
    """Return all classes that config files name at a dotted key."""
    group, _, inner = place.partition(".")
    targets = []
    files = [(home, file) for home in among for file in sorted((home / group).rglob("*.yaml"))]
    for folder, file in files:
        within = ".".join(part for part in file.parent.relative_to(folder).parts[1:] if part != "base")
        for indent, target in TARGET.findall(file.read_text(encoding="utf-8")):
            if (within == inner) if not indent else not within and inner:
                targets.append(target)
    return list(dict.fromkeys(targets))


def unfit(config: Any, key: Key, path: str = "", command: str = "train") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, error line) of every key below ``key``, at ``path``, with an undeclared value."""
    target = allowed(str(config.get("_target_") or "")) if isinstance(config, dict) else ""
    for name, value in config.items() if isinstance(config, dict) else ():
        if name in OPTIONS:
            continue
        member, where = below(key, str(name), target) or Key(), f"{path}.{name}" if path else str(name)
        if line := _refusal(where, member, value, command):
            yield where, line
        yield from unfit(value, member, where, command)
        for i, one in enumerate(value if isinstance(value, list) else ()):
            yield from unfit(one, Key(), f"{where}[{i}]", command)


def _refusal(where: str, key: Key, value: Any, command: str) -> str:
    if not fits(key.kind, value) and (line := answer(where, str(value), command=command)):
        return line
    if fields(key.kind):
        if isinstance(value, Mapping) or (value is None and "null" in literal_values(key.kind)):
            return ""
        return f"{where}={value!r}"[:100] + f": must be a group of keys ({', '.join(members(key))})"
    if isinstance(value, dict) and "_target_" in value:
        return ""  # an object, of which its owner knows what to make
    return refusal(where, key.kind, value)


def check_values(config: Any, command: str = "train", path: str = "") -> None:
    """Raise UserError for the first key below ``path`` whose value is outside of its declaration."""
    key = find_key(path, command=command) if path else Key(COMMANDS[command])
    for _, line in unfit(config, key, path, command):
        raise UserError(line)


def groups() -> tuple[str, ...]:
    """Return the groups that every run has."""
    every = ((key, unwrap(kind)[0]) for key, kind in _hints(Train).items() if key in Train.__required_keys__)
    return tuple(key for key, inner in every if is_typeddict(inner) or typing.get_origin(inner) is dict)


def with_roles(*roles: Role, key: Key | None = None, path: str = "") -> list[str]:
    """Return the keys with one of these roles: top-level ones, and those of groups of another role."""
    names, group = [], key or Key(Train)
    for name, kind in fields(group.kind).items():
        member, where = group.inside(kind), f"{path}.{name}" if path else name
        names += [where] if member.role in roles else with_roles(*roles, key=member, path=where)
    return names
