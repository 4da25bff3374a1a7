"""Import Hydra's private class ``BasicSweeper``; no other module imports private names of Hydra.

Our sweepers derive from ``BasicSweeper``, which expands a grid into jobs. A copy of it could
interpret a command differently from Hydra. A test fails if a later version of Hydra moves it.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

__all__ = ["BasicSweeper"]
