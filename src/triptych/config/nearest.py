"""The nearest name that exists."""

import difflib
from collections.abc import Sequence


def nearest(name: str, accepted: Sequence[str]) -> str:
    """ "did you mean ...?" if something is near, else the list of what is accepted."""
    names = sorted(set(accepted))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"accepted: {shown or 'nothing'}"
