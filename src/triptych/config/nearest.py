"""Suggest the nearest existing name."""

import difflib
from collections.abc import Sequence

NEAR = 0.6  # difflib's ratio from which a name counts as near
LEAF = 0.45  # that of the last parts alone, which such a name needs, too
TYPO = 0.85  # and from which a letter or two are all that differs


def nearest(name: str, names: Sequence[str]) -> str:
    """Return "did you mean ...?" if a name is near, else the list of names.

    Near is a slip of a letter or two, then the same name in a group (``steps``: ``sampler.steps``), then what
    looks alike.
    """
    names = sorted(one for one in set(names) if not name.startswith(f"{one}."))  # its group is no key
    inside = [one for one in names if one.rpartition(".")[2] == name]  # in groups, typed without them
    close = _close(name, names, TYPO) or " or ".join(inside[:3])
    close = close or _close(name, [one for one in names if _alike(one, name)], NEAR)
    if close:
        return f"did you mean {close}?"
    group = name.rpartition(".")[0]
    names = [one for one in names if one.rpartition(".")[0] == group] or names
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"choose from {shown or 'nothing'}"


def _close(name: str, names: Sequence[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), "")


def _alike(one: str, name: str) -> bool:
    """Return whether the last parts are similar too: an equal group alone makes any two keys near."""
    leaf, other = one.rpartition(".")[2], name.rpartition(".")[2]
    return leaf[:1] != "_" and difflib.SequenceMatcher(None, leaf, other).ratio() >= LEAF
