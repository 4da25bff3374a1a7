"""Declare a key by the annotation of its argument: type, range, unit and role, once.

    def __init__(self, width: Count = 32, dropout: Share = 0.0, seed: Annotated[int, Role.LOADING] = 0): ...

``int``, ``float`` (finite), ``bool``, ``str``, ``Literal``, ``None``, sequences and unions of these are
checked, with the limits of ``annotated_types`` in ``Annotated``; any other annotation takes what its owner
takes. ``config/source.py`` reads the annotations from the source, before anything is imported; ``declared``
enforces them in Python. This module imports nothing of the project, so every room can use it.
"""

import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from os import PathLike
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen

__all__ = [
    "Annotated", "Count", "FilePath", "Ge", "Gt", "IsClass", "Le", "Len", "Literal", "Lt", "MinLen",
    "NonNegative", "Opened", "Positive", "Role", "Seed", "Share", "Steps", "Unit", "Whole", "declared",
]  # fmt: skip


class Role(StrEnum):
    """How a key affects a run's identity; ``IDENTITY`` by default."""

    IDENTITY = "identity"  # changes the result: an axis of a comparison
    DRAWING = "drawing"  # decided after a model is trained, how samples are drawn and measured: an axis
    SPLIT = "split"  # which items train and validate: an axis, as the data and the test set are the same
    DATA = "data"  # which data there are: runs that differ in it are not compared
    JUDGED = "judged"  # which of them test: neither are these, but a guide or classifier may differ in it
    PATH = "path"  # where data or runs happen to lie; what lies there has a fingerprint
    LOADING = "loading"  # how data reach memory: changes nothing, or follows from another key
    MACHINE = "machine"  # on what it runs: the result is the same but for the last digits
    REPORTING = "reporting"  # how a run is watched
    OUTPUT = "output"  # where runs are written
    LABEL = "label"  # names for what other keys say
    SEED = "seed"  # pairs the runs of two settings
    START = "start"  # how this start treats its directory, or for how long a sweep goes on


@dataclass(frozen=True)
class Unit:
    """The unit of a number, for help and documentation."""

    name: str


@dataclass(frozen=True)
class IsPath:
    """Mark a path, which is typed without Hydra's quotes."""


@dataclass(frozen=True)
class IsClass:
    """Mark the dotted name of a class."""


Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(1), Le(1_000_000_000), Unit("steps")]  # gammas of two differ in double to here
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Seed = Annotated[int, Ge(0), Le(4294967295)]  # numpy's
FilePath = Annotated[str | PathLike[str], IsPath()]
ClassName = Annotated[str, IsClass()]
Opened = Annotated[Any, IsPath()]  # an object that a configuration names by the path of its checkpoint

LISTS = (list, tuple, Sequence)
ENDS = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}


def unwrap(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split ``Annotated`` into (type, metadata)."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return inner, tuple(more)
    return kind, ()


def alternatives(kind: Any) -> list[Any]:
    """Return the members of a union, or the type itself."""
    return [*get_args(kind)] if get_origin(kind) in (Union, types.UnionType) else [kind]


def marks(kind: Any) -> list[Any]:
    """Return all ``Annotated`` metadata of a type and the members of a union, outermost first."""
    inner, more = unwrap(kind)
    below = alternatives(inner)
    return [*more, *(mark for one in below if one is not kind for mark in marks(one))]


def is_declaration(kind: Any) -> bool:
    """Return whether a type is a declaration: plain types are injected, not configured."""
    inner, more = unwrap(kind)
    return bool(more) or get_origin(inner) is Literal or any(map(is_declaration, get_args(inner)))


def fits(kind: Any, value: Any) -> bool:
    """Return whether ``value`` has the declared type and range; undeclared types accept everything."""
    inner, limits = unwrap(kind)
    if (several := alternatives(inner))[0] is not inner:
        fit = any(fits(one, value) for one in several)
    elif inner in (None, type(None)):
        fit = value is None
    elif inner in (bool, str):
        fit = isinstance(value, inner)
    elif inner is int:
        fit = isinstance(value, Integral) and not isinstance(value, bool)
    elif inner is float:
        number = isinstance(value, Real) and not isinstance(value, bool)
        fit = number and -math.inf < value < math.inf  # also for whole numbers that no float can hold
    elif get_origin(inner) is Literal:
        fit = any(type(one) is type(value) and one == value for one in get_args(inner))
    elif _origin(inner) in LISTS:
        fit = _items_fit(get_args(inner), value)
    elif _origin(inner) in (dict, PathLike):
        fit = isinstance(value, Mapping if _origin(inner) is dict else PathLike)
    else:
        fit = True
    return fit and all(_within(limit, value) for limit in limits)


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind


def _items_fit(kinds: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if len(kinds) > 1 and kinds[1] is not Ellipsis:
        return len(kinds) == len(value) and all(map(fits, kinds, value))
    return not kinds or all(fits(kinds[0], item) for item in value)


def _within(limit: Any, value: Any) -> bool:
    match limit:
        case Ge(end) | Gt(end) | Le(end) | Lt(end):
            return bool(ENDS[type(limit)](value, end))
        case Len() | MinLen():
            most = getattr(limit, "max_length", None)
            return limit.min_length <= len(value) and (most is None or len(value) <= most)
        case IsPath():
            return bool(value != "")  # Path("") would be the current directory
        case IsClass():
            return not isinstance(value, str) or "." in value
    return True


def describe_kind(kind: Any) -> str:
    """Describe a type in words, as "null or a whole number of at least 1"; "" if undeclared."""
    words = _words(kind)
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if all(words) and words else ""


def literal_values(kind: Any) -> list[str]:
    """Return the named values of a type, as typed on the command line."""
    inner, _ = unwrap(kind)
    if (several := alternatives(inner))[0] is not inner:
        return [option for one in several for option in literal_values(one)]
    if inner in (None, type(None)):
        return ["null"]
    if inner is bool:
        return ["true", "false"]
    literal = get_args(inner) if get_origin(inner) is Literal else ()
    return ["null" if option is None else str(option) for option in literal]


def _words(kind: Any) -> list[str]:
    inner, limits = unwrap(kind)
    if any(isinstance(limit, IsPath) for limit in limits):
        return ["a path"]
    if any(isinstance(limit, IsClass) for limit in limits):
        return ["a class's dotted name"]
    several = alternatives(inner)
    if several[0] is not inner:
        words = [word for one in several for word in _words(one)]
        return sorted(dict.fromkeys(words), key=lambda word: word != "null")
    if named := literal_values(kind):
        return named
    if inner in (int, float):
        noun = "a whole number" if inner is int else "a number"
        return [" ".join(filter(None, (noun, _range(limits, inner is int))))]
    if _origin(inner) in LISTS:
        kinds = get_args(inner)
        fixed = f" of {len(kinds)}" if len(kinds) > 1 and kinds[1] is not Ellipsis else ""
        least = next((limit.min_length for limit in limits if isinstance(limit, MinLen | Len)), 0)
        each = describe_kind(kinds[0]) if kinds else ""
        more = f" with {least} or more entries" if least else ""
        return [f"a list{fixed}{more}" + (f", each {each}" if each else "")]
    return [{str: "text", dict: "a group of keys"}.get(_origin(inner), "")]


def _range(limits: Sequence[Any], whole: bool) -> str:
    ends = {type(one): getattr(one, type(one).__name__.lower()) for one in limits if type(one) in ENDS}
    low, high = ends.get(Ge), ends.get(Le)
    if low is not None and high is not None:
        return f"from {low:.15g} to {high:.15g}" if whole else f"in [{low:g}, {high:g}]"
    named = [(Ge, "of at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")]
    return ", ".join(f"{word} {ends[end]:.15g}" for end, word in named if end in ends)


def refusal(key: str, kind: Any, value: Any) -> str:
    """Return the error line for ``value``; "" if it fits."""
    if fits(kind, value):
        return ""
    whole = isinstance(value, float) and value.is_integer() and fits(kind, int(value))  # as 1e3 is read
    hint = f"; type {int(value)}" if whole else ""
    return f"{key}={repr(value)[:100]}: must be {describe_kind(kind)}{hint}"


C = TypeVar("C", bound=type)


def declared(place: str, error: type[Exception] = ValueError) -> Callable[[C], C]:
    """Check the arguments of ``__init__`` against their declarations, for a class and its subclasses.

    ``place``: where configurations have the class, as "denoiser.network"; ``error``: type that is raised.
    """

    def hold(cls: type) -> None:
        original = cls.__dict__.get("__init__")
        if original is None:
            return
        signature = inspect.signature(original)

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                values = signature.bind(self, *args, **kwargs).arguments
            except TypeError:
                values = {}  # Python's own message says it better
            for name, kind in _kinds(original).items():
                if name in values and (line := refusal(f"{place}.{name}", kind, values[name])):
                    raise error(line)
            original(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]  # of a class in the making

    def decorate(cls: C) -> C:
        owner: Any = cls  # what type checkers say of super() is of classes that they know

        def __init_subclass__(sub: type, /, **options: Any) -> None:
            super(owner, sub).__init_subclass__(**options)
            hold(sub)

        hold(cls)
        setattr(cls, "__init_subclass__", classmethod(__init_subclass__))  # noqa: B010
        return cls

    return decorate


@functools.cache
def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Return {argument: type} of a function's declared arguments."""
    kinds = {}
    for name, kind in function.__annotations__.items():
        with suppress(NameError):  # of a type that is imported for type checkers alone
            kind = eval(kind, function.__globals__) if isinstance(kind, str) else kind
            if is_declaration(kind):
                kinds[name] = kind
    return kinds
