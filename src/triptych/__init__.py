"""Triptych: controlled ablations of diffusion models, compared by one variational bound."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.api import Trained, compose, load, table, train

__version__ = "0.2.0"
__all__ = ["Trained", "compose", "load", "table", "train"]


def __getattr__(name: str) -> Any:
    """Import ``triptych.api`` on first access."""
    if name in __all__:
        from triptych import api

        return getattr(api, name)
    raise AttributeError(f"module 'triptych' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
