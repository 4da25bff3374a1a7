"""User packages: which are trusted, and where in them an error was raised."""

import inspect
import os
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@cache
def trusted() -> tuple[str, ...]:
    """Return the packages whose classes configurations may name."""
    names = [name.strip() for name in os.environ.get("TRIPTYCH_TRUST", "").split(",")]
    if PYPROJECT.is_file():
        import tomllib

        written = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
        names += written.get("tool", {}).get("triptych", {}).get("trust", [])
    return tuple(name for name in names if name)


def is_trusted(name: str) -> bool:
    """Return whether a dotted name lies in a trusted package."""
    return any(lies_in(name, package) for package in trusted())


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


def raised_at(error: BaseException, own: Callable[[str], bool] = is_trusted) -> str:
    """Return " (FILE:LINE, in NAME)" of the innermost user frame of a traceback; "" without one.

    ``own``: whether a module, by its name, is of that code.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f" ({error.filename}:{error.lineno})"
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [one for one in frames if own(one[0].f_globals.get("__name__", ""))]
    if not ours:
        return "" if error.__cause__ is None else raised_at(error.__cause__, own)
    frame, number = ours[-1]
    name = frame.f_code.co_name
    return f" ({frame.f_code.co_filename}:{number}{'' if name == '<module>' else f', in {name}'})"


def describe_error(error: BaseException, own: Callable[[str], bool] = is_trusted) -> str:
    """Describe an exception in one line: type, message, and where user code raised it."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:600]}{raised_at(error, own)}"
