"""The only import from Hydra's private modules.

Hydra's sweepers are made from ``BasicSweeper``, which splits a grid into jobs. It has no public door,
and a copy of it here could read a command differently from Hydra. A test names it, so that it fails
where a later version moves it.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["BasicSweeper"]
