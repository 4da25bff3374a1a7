"""User packages: which are trusted, what their classes lack, and where in them an error was raised."""

import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.terminal import in_one_line

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
IMPORTED: dict[str, tuple[Any, str]] = {}  # {module: its spec, which a reload replaces; digest of its file}


def trusted() -> tuple[str, ...]:
    """Return the packages whose classes configurations may name."""
    return _trusted(os.environ.get("TRIPTYCH_TRUST", ""))  # which a notebook may set at any time


@cache
def _trusted(typed: str) -> tuple[str, ...]:
    names = [name.strip() for name in typed.split(",")]
    if PYPROJECT.is_file():
        import tomllib

        written = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
        names += written.get("tool", {}).get("triptych", {}).get("trust", [])
    return tuple(name for name in names if name)


def is_trusted(name: str) -> bool:
    """Return whether a dotted name lies in a trusted package."""
    return any(lies_in(name, package) for package in trusted())


def is_own(part: object) -> bool:
    """Return whether an object's class, or a function, is a user's."""
    return is_trusted(getattr(part, "__module__", None) or "")


def remember_imported() -> None:
    """Keep the digests of the user's modules as they are imported, for ``provenance.check_imported``."""
    tops = {name.partition(".")[0] for name in trusted()}  # of thousands of modules
    for name in [name for name in [*sys.modules] if name.partition(".")[0] in tops and is_trusted(name)]:
        spec = getattr(sys.modules[name], "__spec__", None)
        if spec and spec.has_location and IMPORTED.get(name, (None,))[0] is not spec:
            IMPORTED[name] = spec, digest_file(spec.origin)


def digest_file(file: str | Path) -> str:
    """Return a short digest of a file."""
    try:
        return hashlib.blake2b(Path(file).read_bytes(), digest_size=4).hexdigest()
    except OSError:
        return "unreadable"


def lies_in(name: str, package: str) -> bool:
    """Return whether a dotted name is ``package`` or lies in it."""
    return name == package or name.startswith(f"{package}.")


def defined_at(what: Callable[..., Any]) -> str:
    """Return " (FILE:LINE)" of a user's function, method or class; "" for others."""
    code = inspect.unwrap(getattr(what, "__func__", what))
    if not is_trusted(getattr(code, "__module__", None) or ""):
        return ""
    try:
        return f" ({inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]})"
    except (OSError, TypeError):  # typed in, not in a file
        return f" ({code.__module__}.{code.__qualname__})"


def check_methods(kind: type, place: str, bases: tuple[type, ...]) -> None:
    """Check that a class has each method that our ``bases`` need, with its arguments; UserError."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if missing := ", ".join(f"{method}()" for method in sorted(getattr(kind, "__abstractmethods__", ()))):
        raise UserError(f"{place}: {name} lacks {missing}; define it{defined_at(kind)}")
    for base in bases:
        if not base.__module__.startswith("triptych."):
            continue
        for method, abstract in vars(base).items():
            own = inspect.getattr_static(kind, method, None)
            if own is abstract or not getattr(abstract, "__isabstractmethod__", False):
                continue
            if inspect.isfunction(own):
                _check_arguments(own, abstract, f"{place}: {name}.{method}")


def _check_arguments(own: Callable[..., Any], abstract: Callable[..., Any], place: str) -> None:
    expected, arguments = _plain_signature(abstract), _plain_signature(own)
    try:
        arguments.bind(*expected.parameters)
    except TypeError as error:
        method = abstract.__name__
        raise UserError(f"{place}{arguments}; must be {method}{expected}{defined_at(own)}") from error


def _plain_signature(function: Any) -> inspect.Signature:
    arguments = inspect.signature(function).parameters.values()
    return inspect.Signature([one.replace(annotation=one.empty) for one in arguments])


def raised_at(error: BaseException) -> str:
    """Return " (FILE:LINE, in NAME)" of the innermost user frame, or of a user's class called last; or ""."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({error.filename}:{error.lineno})"
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [one for one in frames if is_trusted(one[0].f_globals.get("__name__", ""))]
    if not ours:
        if error.__cause__ is not None:
            return raised_at(error.__cause__)
        called = type(frames[-1][0].f_locals.get("self")) if frames else type(None)
        return defined_at(called)
    frame, number = ours[-1]
    name = frame.f_code.co_name
    return f" ({frame.f_code.co_filename}:{number}{'' if name == '<module>' else f', in {name}'})"


def describe_error(error: BaseException) -> str:
    """Describe an exception in one line: type, message, and where user code raised it."""
    return in_one_line(f"{type(error).__name__}: {str(error)[:600]}{raised_at(error)}")


@contextmanager
def raised_by(key: str = "") -> Iterator[None]:
    """Raise each error of a user's code within the context as a UserError that begins with its ``key``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not raised_at(error):
            raise
        raise UserError(f"{key}: " * bool(key) + describe_error(error)) from error
