"""The only import from Hydra's private modules.

Our sweepers derive from ``BasicSweeper``, which expands a grid into jobs. It is not public, but a
copy of it could interpret a command differently from Hydra. A test fails if a later version of
Hydra moves it.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["BasicSweeper"]
