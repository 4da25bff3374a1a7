"""The only import from Hydra's private modules.

Hydra's sweepers derive from ``BasicSweeper``, which splits a grid into jobs. It is not public, and
a copy of it here could read a command differently from Hydra. A test imports it, and fails if a
later version moves it.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["BasicSweeper"]
