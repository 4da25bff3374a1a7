"""Declare configuration keys by annotating constructor arguments: type, range, unit and role.

    def __init__(self, width: Count = 32, seed: Annotated[int, Role.LOADING] = 0): ...

Each key is declared once, in this way. ``int``, ``float`` (finite), ``bool``, ``str``, ``Literal``,
``None``, sequences and unions of these are checked, with the limits of ``annotated_types`` in
``Annotated``. Values of any other annotation are checked by the class itself.
``config/signatures.py`` knows the annotations without importing the classes; the decorator
``declared`` checks arguments that are passed in Python. This module imports nothing of the project,
so every package can use it.
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

from annotated_types import Ge, Gt, Le, Lt, MinLen

__all__ = [
    "Annotated", "Count", "FilePath", "Ge", "Gt", "IsClass", "Le", "Literal", "Lt", "MinLen",
    "NonNegative", "Opened", "Positive", "Role", "Seed", "Share", "Steps", "Unit", "Whole", "declared",
]  # fmt: skip


class Role(StrEnum):
    """How a key affects a run's identity; ``IDENTITY`` by default."""

    IDENTITY = "identity"  # changes the result; may be an axis of a comparison
    # How samples are drawn and measured after training; may be an axis.
    DRAWING = "drawing"
    # The split into training and validation items. It may be an axis, as the test set is the same.
    SPLIT = "split"
    DATA = "data"  # the data set; runs with different data are not compared
    # Which items are tested. Runs that differ in it are not compared; a guide or a classifier of
    # samples may have been trained with another choice.
    JUDGED = "judged"
    PATH = "path"  # a location of data or runs; fingerprints identify their content
    LOADING = "loading"  # how data are loaded; it does not change the result
    MACHINE = "machine"  # the hardware; it changes only the last digits of the result
    REPORTING = "reporting"  # progress, logs and other reports on a run
    OUTPUT = "output"  # where runs are written
    LABEL = "label"  # names and descriptions; they do not change the result
    SEED = "seed"  # the seed, by which runs of two settings are paired
    START = "start"  # whether to retry or replace a run, or how long a sweep continues


@dataclass(frozen=True)
class Unit:
    """The unit of a number, such as "steps", for help and documentation."""

    name: str


@dataclass(frozen=True)
class IsPath:
    """An annotation for text that is a path; it can be typed without Hydra's quotes."""

    describe = "a path"


@dataclass(frozen=True)
class IsClass:
    """An annotation for text that is the dotted name of a class."""

    describe = "a class's dotted name"


Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
# With more steps, gammas of neighbouring steps would be equal in double precision.
Steps = Annotated[int, Ge(1), Le(1_000_000_000), Unit("steps")]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Seed = Annotated[int, Ge(0), Le(4294967295)]  # numpy's range
FilePath = Annotated[str | PathLike[str], IsPath()]
ClassName = Annotated[str, IsClass()]
# An object that is built from a checkpoint; a configuration gives the checkpoint's path.
Opened = Annotated[Any, IsPath()]

LISTS = (list, tuple, Sequence)
UNIONS = (Union, types.UnionType)


def unwrap(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split a type into (type without ``Annotated``, its metadata); metadata may be ()."""
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        return inner, tuple(metadata)
    return kind, ()


def alternatives(kind: Any) -> list[Any]:
    """Return the members of a union type; for any other type, a list of the type alone."""
    return list(get_args(kind)) if get_origin(kind) in UNIONS else [kind]


def annotated_metadata(kind: Any) -> list[Any]:
    """Return all ``Annotated`` metadata of a type, and then those of the members of a union."""
    inner, metadata = unwrap(kind)
    every = list(metadata)
    if get_origin(inner) in UNIONS:
        for member in get_args(inner):
            every += annotated_metadata(member)
    return every


def is_declaration(kind: Any) -> bool:
    """Return whether an argument of this type is a configuration key; other arguments are injected.

    A type declares a key if it has ``Annotated`` metadata or a ``Literal``, perhaps nested.
    """
    inner, metadata = unwrap(kind)
    return (
        bool(metadata) or get_origin(inner) is Literal or any(map(is_declaration, get_args(inner)))
    )


def is_valid_value(kind: Any, value: Any) -> bool:
    """Return whether ``value`` has the type and range that ``kind`` declares.

    If ``kind`` is a type that this module does not check, every value is valid.
    """
    inner, metadata = unwrap(kind)
    has_type = _type_of(inner).accepts(get_args(inner), value)
    return has_type and all(_satisfies_limit(limit, value) for limit in metadata)


def describe_kind(kind: Any) -> str:
    """Describe a type in words; return "" for a type that this module does not check.

    Example: "null or a whole number of at least 1".
    """
    *others, last = _describe_alternatives(kind)
    if not all([*others, last]):
        return ""
    return f"{', '.join(others)} or {last}" if others else last


def literal_values(kind: Any) -> list[str]:
    """Return the values of a type as texts, if it has a few fixed ones; otherwise [].

    Examples: ["null"], ["true", "false"], the values of a ``Literal``.
    """
    inner, _ = unwrap(kind)
    return _type_of(inner).options(get_args(inner))


def _describe_alternatives(kind: Any) -> list[str]:
    """Return each alternative of a type in words."""
    inner, metadata = unwrap(kind)
    named = [mark.describe for mark in metadata if isinstance(mark, IsPath | IsClass)]
    return named[:1] or _type_of(inner).describe(get_args(inner), metadata)


# limits -------------------------------------------------------------------------------------------


COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: operator.ge,
    Gt: operator.gt,
    Le: operator.le,
    Lt: operator.lt,
}
LIMIT_WORDS = {
    Ge: "of at least {:.15g}",
    Gt: "above {:.15g}",
    Le: "at most {:.15g}",
    Lt: "below {:.15g}",
}


def _satisfies_limit(limit: Any, value: Any) -> bool:
    """Return whether a value satisfies one metadata entry of its type, such as ``Ge(1)``."""
    match limit:
        case Ge(end) | Gt(end) | Le(end) | Lt(end):
            return COMPARISONS[type(limit)](value, end)
        case MinLen(least):
            return len(value) >= least
        case IsPath():
            return bool(value != "")  # because Path("") is the current directory
        case IsClass():
            return not isinstance(value, str) or "." in value
    return True


def _describe_range(limits: Sequence[Any], closed_format: str) -> str:
    """Return the limits of a range in words, such as "of at least 1"; "" without limits.

    ``closed_format`` is the format for a range with both ends, such as "in [{:g}, {:g}]".
    """
    ends = {
        type(limit): getattr(limit, type(limit).__name__.lower())
        for limit in limits
        if type(limit) in COMPARISONS
    }
    if Ge in ends and Le in ends:
        return closed_format.format(ends[Ge], ends[Le])
    return ", ".join(words.format(ends[end]) for end, words in LIMIT_WORDS.items() if end in ends)


# types --------------------------------------------------------------------------------------------


Arguments = tuple[Any, ...]  # arguments of a type: int and str of dict[int, str]


class Type:
    """The check and the description of one kind of type; this base class accepts any value.

    ``arguments`` are those of the checked type, for example (int, str) of ``tuple[int, str]``.
    """

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        """Return whether a value is of this type."""
        return True

    def options(self, arguments: Arguments) -> list[str]:
        """Return all valid values as texts if there are only a few fixed ones, else []."""
        return []

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        """Return each alternative of the type, within ``limits``, in words; [""] if unknown."""
        return self.options(arguments) or [""]


@dataclass(frozen=True)
class _Instance(Type):
    """A type whose values are instances of ``classes``; ``noun`` is its description.

    ``values`` are its values as texts, if there are only a few fixed ones.
    """

    classes: tuple[type, ...]
    noun: str = ""
    values: tuple[str, ...] = ()

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        return isinstance(value, self.classes)

    def options(self, arguments: Arguments) -> list[str]:
        return list(self.values)

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        return list(self.values) or [self.noun]


class _Integer(Type):
    """Whole numbers; ``bool`` is not one of them."""

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool)

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        return [f"a whole number {_describe_range(limits, 'from {:.15g} to {:.15g}')}".strip()]


class _Number(Type):
    """Finite real numbers."""

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        number = isinstance(value, Real) and not isinstance(value, bool)
        # Compare, because ``math.isfinite`` fails for whole numbers too large for a float.
        return number and -math.inf < value < math.inf

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        return [f"a number {_describe_range(limits, 'in [{:g}, {:g}]')}".strip()]


class _Literal(Type):
    """The values that a ``Literal`` lists."""

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        return any(type(option) is type(value) and option == value for option in arguments)

    def options(self, arguments: Arguments) -> list[str]:
        return [{None: "null"}.get(option, str(option)) for option in arguments]


class _Union(Type):
    """Values of any member of a union."""

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        return any(is_valid_value(member, value) for member in arguments)

    def options(self, arguments: Arguments) -> list[str]:
        return [option for member in arguments for option in literal_values(member)]

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        words = dict.fromkeys(
            word for member in arguments for word in _describe_alternatives(member)
        )
        return sorted(words, key="null".__ne__)  # null comes first


class _List(Type):
    """A list: ``list[int]`` has any length, ``tuple[int, str]`` has one type per entry."""

    def accepts(self, arguments: Arguments, value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if self.is_fixed(arguments):
            return len(arguments) == len(value) and all(map(is_valid_value, arguments, value))
        return all(is_valid_value(kind, item) for kind in arguments[:1] for item in value)

    def is_fixed(self, arguments: Arguments) -> bool:
        """Return whether the list has a fixed length, as ``tuple[int, str]`` has."""
        return arguments[1:] not in ((), (Ellipsis,))

    def describe(self, arguments: Arguments, limits: Sequence[Any]) -> list[str]:
        words = f"a list of {len(arguments)}" if self.is_fixed(arguments) else "a list"
        for limit in limits:
            if isinstance(limit, MinLen):
                words += f" with {limit.min_length} or more entries"
        each = describe_kind(arguments[0]) if arguments else ""
        return [f"{words}, each {each}" if each else words]


UNDECLARED = Type()
NULL = _Instance((type(None),), values=("null",))
TYPES: dict[Any, Type] = {
    None: NULL,
    type(None): NULL,
    bool: _Instance((bool,), values=("true", "false")),
    str: _Instance((str,), "text"),
    dict: _Instance((Mapping,), "a group of keys"),
    PathLike: _Instance((PathLike,)),
    int: _Integer(),
    float: _Number(),
    Literal: _Literal(),
    **dict.fromkeys(UNIONS, _Union()),
    **dict.fromkeys(LISTS, _List()),
}


def _type_of(kind: Any) -> Type:
    """Return the ``Type`` that checks the type ``kind``."""
    return TYPES.get(get_origin(kind) or kind, UNDECLARED)


# errors -------------------------------------------------------------------------------------------


def type_error_line(key: str, kind: Any, value: Any) -> str:
    """Return the error line for a value that ``kind`` does not allow; "" for a valid value."""
    if is_valid_value(kind, value):
        return ""
    return f"{key}={repr(value)[:100]}: must be {describe_kind(kind)}"


C = TypeVar("C", bound=type)


def declared(place: str, error: type[Exception] = ValueError) -> Callable[[C], C]:
    """Decorate a class so that its constructor checks all arguments with a declared type.

    Constructors of subclasses check theirs, too. ``place`` is the configuration group of the class,
    such as "denoiser.network"; ``error`` is the type of exception to raise.
    """

    def wrap_init(cls: type) -> None:
        """Wrap the ``__init__`` that ``cls`` itself defines, if any, to check its arguments."""
        original = cls.__dict__.get("__init__")
        if original is None:
            return
        signature = inspect.signature(original)

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            values: dict[str, Any] = {}
            with suppress(TypeError):  # Python's own message is clearer
                values = signature.bind(self, *args, **kwargs).arguments
            for name, kind in _declared_types(original).items():
                if name in values and not is_valid_value(kind, values[name]):
                    raise error(type_error_line(f"{place}.{name}", kind, values[name]))
            original(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]  # mypy: the class is still being created

    def decorate_class(cls: C) -> C:
        owner: Any = cls  # Any, because type checkers do not know the class of super()

        def __init_subclass__(sub: type, /, **options: Any) -> None:
            super(owner, sub).__init_subclass__(**options)
            wrap_init(sub)

        wrap_init(cls)
        # By setattr, because mypy takes no assignment to a method.
        setattr(cls, "__init_subclass__", classmethod(__init_subclass__))  # noqa: B010
        return cls

    return decorate_class


@functools.cache
def _declared_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return {argument: type} of those arguments of a function that declare a configuration key."""
    kinds = {}
    for name, kind in function.__annotations__.items():
        if isinstance(kind, str):
            with suppress(NameError):  # some types are imported only under TYPE_CHECKING
                kinds[name] = eval(kind, function.__globals__)
        else:
            kinds[name] = kind
    return {name: kind for name, kind in kinds.items() if is_declaration(kind)}
