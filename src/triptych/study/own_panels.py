"""Panels of the owner's: ``PANELS`` of ``report/panel_NAME.py``, and of ``panels.py`` in a trusted package.

Nothing in a directory that is reported names either, so a report over a stranger's runs runs nobody's code
but the owner's. What fails costs its panel, and says so in its place; the report goes on.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module

from matplotlib.figure import Figure

from triptych import study
from triptych.config import mistakes
from triptych.config.source import file_of
from triptych.config.trust import is_trusted, trusted
from triptych.study.compare import Comparison

Draw = Callable[[Comparison, Mapping[str, str]], Figure | str | None]
Entry = tuple[str, str, tuple[Draw, ...]]


def modules() -> list[str]:
    """The modules that have such panels, by name; nothing is imported."""
    own = sorted(m.name for m in pkgutil.iter_modules(study.__path__) if m.name.startswith("panel_"))
    of_packages = (f"{package}.panels" for package in trusted())
    return [f"{study.__name__}.{name}" for name in own] + [name for name in of_packages if file_of(name)]


def entries(module: str) -> tuple[list[Entry], str]:
    """A module's panels, and a line about what is wrong with them, "" if nothing is."""
    try:
        listed = import_module(module).PANELS
        return [(str(title), str(how), tuple(draws)) for title, how, draws in listed], ""
    except (Exception, SystemExit) as error:
        return [], f"{module}: {describe_panel_error(error)}"


def describe_panel_error(error: BaseException) -> str:
    """An error in the owner's code, with the innermost line of that code."""
    return mistakes.describe_error(
        error, lambda name: is_trusted(name) or name.startswith(f"{study.__name__}.panel_")
    )
