"""A configuration from a file as plain data: copied, bounded, without references, before it is read."""

from typing import Any

from triptych.errors import UserError
from triptych.limits import DEPTH, TEXT, limit

WHOLE = 2**64  # no number of a configuration is larger


def plain(value: Any, what: str) -> Any:
    """A copy of ``value`` made of None, bool, int, float, str, list and dict alone; ``what`` is for messages.

    Text is text: a run records its configuration resolved, so that a ``${...}`` in it can only be somebody's
    wish to have it resolved here, and is refused.

    Raises:
        UserError: any other type, a reference, more or deeper values than the limits allow.
    """
    return _copy(value, "", what, [limit("TRIPTYCH_MAX_NODES")])


def _copy(value: Any, path: str, what: str, left: list[int], depth: int = 0) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise UserError(
            f"{what}: more than {limit('TRIPTYCH_MAX_NODES')} values; TRIPTYCH_MAX_NODES=... raises the limit"
        )
    if depth > DEPTH:
        raise UserError(f"{what}: {path[:60]}...: nested deeper than {DEPTH}, as no configuration is")
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and abs(value) < WHOLE:
        return value
    if kind is str and len(value) <= TEXT:
        if "${" in value:
            raise UserError(f"{what}: {path}={value[:60]!r}: a reference; plain values are accepted")
        return value
    if kind is list or kind is tuple:
        return [_copy(v, f"{path}[{i}]", what, left, depth + 1) for i, v in enumerate(value)]
    if isinstance(value, dict) and all(type(key) is str and len(key) <= TEXT for key in value):
        return {
            key: _copy(v, f"{path}.{key}" if path else key, what, left, depth + 1) for key, v in value.items()
        }
    shown = "a longer value" if kind in (int, str) else kind.__name__
    raise UserError(f"{what}: {path or 'the whole'}: {shown}; numbers, text, lists and groups are accepted")


def group(config: Any, what: str, *names: str) -> None:
    """UserError unless ``config`` has a group of keys under each of ``names``."""
    for name in names:
        if not isinstance(config, dict) or not isinstance(config.get(name), dict):
            raise UserError(f"{what}: its configuration has no group {name}; that of a run is accepted")


def count(value: Any, what: str, most: int) -> int:
    """``value`` if it is a whole number from 1 to ``most``; else UserError that begins with ``what``."""
    if type(value) is not int or not 1 <= value <= most:
        shown = value if isinstance(value, int | float | str | None) else type(value).__name__
        raise UserError(f"{what}={shown}: a whole number from 1 to {most} is accepted")
    return value
