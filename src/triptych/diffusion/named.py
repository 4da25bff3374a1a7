"""Classes that a short name stands for: ``beta_tilde`` for ``BetaTilde``."""

import re
import sys
from typing import Self


class Named:
    """A base class whose subclasses in its own module have short names, which follow from their own."""

    @classmethod
    def name(cls) -> str:
        """Return the class's name in small letters, words apart."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def named(cls, name: str, key: str) -> type[Self]:
        """Return the subclass of that name; ``key`` is for messages.

        Raises:
            ValueError: there is none.
        """
        known = {
            kind.name(): kind
            for kind in vars(sys.modules[cls.__module__]).values()
            if isinstance(kind, type) and issubclass(kind, cls) and kind is not cls
        }
        if name not in known:
            raise ValueError(f"{key}={name!r}: must be one of {', '.join(known)}")
        return known[name]
