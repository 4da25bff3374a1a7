"""Import the trusted user packages, and find the place in user code where an error was raised."""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

from triptych.errors import UserError
from triptych.terminal import as_one_line

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
IMPORTED: dict[str, tuple[Any, bytes]] = {}  # {module: (its spec, content of its file)}
# {environment variable that a module has changed when it was imported: its value before, or None}
_values_before: dict[str, str | None] = {}


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


def user_modules() -> list[str]:
    """Return the names of all imported modules that lie in a trusted package."""
    # As ``is_trusted``, but the packages are looked up once for thousands of modules.
    prefixes = tuple(f"{package}." for package in trusted_packages())
    return [name for name in [*sys.modules] if f"{name}.".startswith(prefixes)]


def import_module(name: str) -> Any:
    """Import a module, and remember the environment variables that this changes."""
    before = dict(os.environ)
    try:
        return importlib.import_module(name)
    finally:
        for variable, _ in before.items() ^ os.environ.items():
            _values_before.setdefault(variable, before.get(variable))


def original_environment() -> dict[str, str]:
    """Return the environment for new processes, without what imported modules have changed in it.

    A process that inherited such a variable would have it before it imports the module itself, as
    when it imports torch, and so differ from one that did not.
    """
    variables = {**os.environ, **_values_before}
    return {name: value for name, value in variables.items() if value is not None}


def restore_environment() -> None:
    """Undo what imported modules have changed in the environment, before workers inherit it."""
    original = original_environment()
    os.environ.clear()
    os.environ.update(original)


def remember_imported() -> None:
    """Record the source of each user module that is imported, as its file may change later.

    ``provenance.check_imported`` compares it with the file, and new processes of the run import the
    recorded source.
    """
    for name in user_modules():
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        # A reloaded module has a new spec, so it is recorded again.
        if spec and spec.has_location and IMPORTED.get(name, (None,))[0] is not spec:
            IMPORTED[name] = spec, read_source(spec.origin)


def recorded_sources() -> dict[str, tuple[str, bytes]]:
    """Return {user module: (path of its file, source)} as ``remember_imported`` has recorded."""
    return {
        name: (spec.origin, source)
        for name, (spec, source) in IMPORTED.items()
        if isinstance(spec.loader, SourceFileLoader)
    }


def import_from_sources(sources: dict[str, tuple[str, bytes]]) -> None:
    """Have this process import modules from these sources, {module: (path, source)}."""
    sys.meta_path.insert(0, _RecordedModules(sources))


class _RecordedModules:
    """A finder (for ``sys.meta_path``) of modules with a recorded source."""

    def __init__(self, sources: dict[str, tuple[str, bytes]]):
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module with a recorded source; None for others."""
        if name not in self.sources:
            return None
        file, source = self.sources[name]
        return spec_from_file_location(name, file, loader=_RecordedLoader(name, file, source))


class _RecordedLoader(SourceFileLoader):
    """The loader of a module with a recorded source; its file may have changed since."""

    def __init__(self, name: str, path: str, source: bytes):
        super().__init__(name, path)
        self.source = source

    def get_code(self, name: str) -> CodeType:
        """Compile the recorded source."""
        code: CodeType = self.source_to_code(self.source, self.path)
        return code


def read_source(file: str | Path) -> bytes:
    """Return the content of a file; empty if it cannot be read."""
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


def digest_file(file: str | Path) -> str:
    """Return a short digest of a file."""
    return hashlib.blake2b(read_source(file), digest_size=4).hexdigest()


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
