"""Import the trusted user packages, and find the place in user code where an error was raised."""

import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.terminal import as_one_line

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def trusted_packages() -> tuple[str, ...]:
    """Return the names of the user's packages whose classes configurations may name."""
    # Read the variable each time, as a notebook may change it.
    return _trusted_packages(os.environ.get("TRIPTYCH_TRUST", ""))


@cache
def _trusted_packages(typed: str) -> tuple[str, ...]:
    names = [name.strip() for name in typed.split(",")]
    if PYPROJECT.is_file():
        import tomllib

        written = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
        names += written.get("tool", {}).get("triptych", {}).get("trust", [])
    return tuple(filter(None, names))


def is_trusted(name: str) -> bool:
    """Return whether a dotted name lies in a trusted package."""
    return any(is_within_package(name, package) for package in trusted_packages())


def is_user_code(part: object) -> bool:
    """Return whether a function, or the class of an object, is defined in a trusted package."""
    return is_trusted(getattr(part, "__module__", None) or "")


def is_within_package(name: str, package: str) -> bool:
    """Return whether a dotted name is ``package`` or lies in it."""
    return name == package or name.startswith(f"{package}.")


def definition_location(definition: Callable[..., Any]) -> str:
    """Return " (FILE:LINE)" of a user's function, method or class; "" for others."""
    code = inspect.unwrap(getattr(definition, "__func__", definition))
    if not is_user_code(code):
        return ""
    try:
        return f" ({inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]})"
    except (OSError, TypeError):  # it was typed in a notebook or shell
        return f" ({code.__module__}.{code.__qualname__})"


def error_location(error: BaseException) -> str:
    """Return " (FILE:LINE, in NAME)" of the innermost frame in user code; "" without such a frame.

    If the error arose in a method that a user's class inherits, return the place of the class.
    """
    if isinstance(error, SyntaxError):
        return f" ({error.filename}:{error.lineno})"
    frames = list(traceback.walk_tb(error.__traceback__))
    for frame, line in reversed(frames):
        if is_trusted(frame.f_globals.get("__name__", "")):
            name = frame.f_code.co_name
            function = "" if name == "<module>" else f", in {name}"
            return f" ({frame.f_code.co_filename}:{line}{function})"
    if error.__cause__ is not None:
        return error_location(error.__cause__)
    return definition_location(type(frames[-1][0].f_locals.get("self"))) if frames else ""


def describe_error(error: BaseException) -> str:
    """Describe an exception in one line: type, message, and where user code raised it."""
    return as_one_line(f"{type(error).__name__}: {str(error)[:600]}{error_location(error)}")


@contextmanager
def reraise_as_user_error(key: str = "") -> Iterator[None]:
    """Convert each error of user code in the block to a UserError that begins with ``key``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not error_location(error):
            raise
        description = describe_error(error)
        raise UserError(f"{key}: {description}" if key else description) from error
