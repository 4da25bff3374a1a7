"""Where in the owner's own packages a mistake lies: file and line, for people."""

import inspect
import traceback
from collections.abc import Callable
from typing import Any

from triptych.config.trust import is_trusted


def defined_at(what: Callable[..., Any]) -> str:
    """ " (FILE:LINE)" of a function, method or class of the owner's own; "" of others."""
    code = inspect.unwrap(getattr(what, "__func__", what))
    if not is_trusted(getattr(code, "__module__", None) or ""):
        return ""
    try:
        return f" ({inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]})"
    except (OSError, TypeError):  # typed in, not in a file
        return f" ({code.__module__}.{code.__qualname__})"


def raised_at(error: BaseException, own: Callable[[str], bool] = is_trusted) -> str:
    """ " (FILE:LINE, in NAME)": the innermost line of own code on the way to an error; "" without one.

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
    """Describe an error that is none of ours in one line: kind, message, and where own code raised it."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:600]}{raised_at(error, own)}"
