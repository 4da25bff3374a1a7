"""Panels of the owner's: ``PANELS`` of ``panels.py`` in a trusted package.

Nothing in a directory that is reported names one, so a report over a stranger's runs runs nobody's code
but the owner's. What fails costs its panel, and says so in its place; the report goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from matplotlib.figure import Figure

from triptych.config import mistakes
from triptych.config.source import file_of
from triptych.config.trust import is_trusted, trusted
from triptych.study.compare import Comparison

Draw = Callable[[Comparison, Mapping[str, str]], Figure | str | None]
Entry = tuple[str, str, tuple[Draw, ...]]


def modules() -> list[str]:
    """The modules that have such panels, by name; nothing is imported."""
    return [name for name in (f"{package}.panels" for package in trusted()) if file_of(name)]


def entries(module: str) -> tuple[list[Entry], str]:
    """A module's panels, and a line about what is wrong with them, "" if nothing is."""
    try:
        listed = import_module(module).PANELS
        return [(str(title), str(how), tuple(draws)) for title, how, draws in listed], ""
    except Exception as error:
        return [], f"{module}: {describe_panel_error(error)}"


def describe_panel_error(error: Exception) -> str:
    """An error in the owner's code, with the innermost line of that code."""
    return mistakes.describe_error(error, is_trusted)
