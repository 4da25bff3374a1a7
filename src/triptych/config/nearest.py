"""Suggest the nearest existing name."""

from collections.abc import Sequence
from difflib import SequenceMatcher

NEAR = 0.5  # difflib's ratio from which names are alike


def nearest(name: str, names: Sequence[str]) -> str:
    """Return "did you mean ...?" for the same name in a group, or the ``closest``; else the list of names."""
    names = sorted(one for one in set(names) if not name.startswith(f"{one}."))  # its group is no key
    group = name.rpartition(".")[0]
    if inside := [one for one in names if one.rpartition(".")[2] == name]:  # typed without its group
        return f"did you mean {' or '.join(inside[:3])}?"
    if close := closest(name, names):
        return f"did you mean {close}?"
    names = [one for one in names if one.rpartition(".")[0] == group] or names
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"choose from {shown or 'nothing'}"


def closest(name: str, names: Sequence[str]) -> str:
    """Return the name most alike as a whole and in its last part (groups make any two alike); "" if none."""

    def likeness(one: str) -> float:
        pairs = (one, name), (one.rpartition(".")[2], name.rpartition(".")[2])
        ratios = [SequenceMatcher(None, *pair).ratio() for pair in pairs]
        return sum(ratios) if min(ratios) >= NEAR and "._" not in one else 0.0

    return max(filter(likeness, names), key=likeness, default="")
