"""The only imports from Hydra's private modules.

Hydra's sweepers are made from ``BasicSweeper``, which splits a grid into jobs, and its command line
from one parser of options. Neither has a public door, and a copy of them here could read a command
differently from Hydra. A test names both, so that it fails where a later version moves them.
"""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser

__all__ = ["BasicSweeper", "get_args_parser"]
