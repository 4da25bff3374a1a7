"""Objects from plain configuration: one way in, through the gate of ``trust``, with errors of one line."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from triptych.config.keys import OPTIONS, of_class
from triptych.config.keys import find as find_key
from triptych.config.nearest import nearest
from triptych.config.trust import ARGUMENTS, check_name, find
from triptych.errors import UserError


def targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary with a ``_target_`` in a plain config, in lists as well, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def check_names(config: Any, path: str = "") -> None:
    """Every target may be built, as far as is known without importing anything; else UserError."""
    for where, node in targets(config, path):
        target = check_name(node["_target_"], where)
        for key, value in node.items():
            if key[:1] == "_" and key not in OPTIONS:
                raise UserError(
                    f"{where}.{key}={repr(value)[:100]}: {', '.join(OPTIONS)} are accepted beside arguments"
                )
            if target in ARGUMENTS and key not in OPTIONS and not _scalar(value):
                raise UserError(
                    f"{where}.{key}: {target} takes a plain value here; a number, text or a list is accepted"
                )


def check_targets(config: Any, path: str = "") -> None:
    """Every target allowed and of its place, every key one of its arguments; else UserError, nearest name."""
    check_names(config, path)
    for where, node in targets(config, path):
        target = node["_target_"]
        _check_role(target, where)
        names, more = of_class(target)
        for key in node:
            if not (more or key in names or key in OPTIONS):
                given = f"{where}.{key}={repr(node[key])[:100]}"
                raise UserError(f"{given}: {target} has no such argument, {nearest(key, list(names))}")


def build(config: dict[str, Any], path: str, **extra: Any) -> Any:
    """The object that ``config`` describes; ``path`` is its place in the configuration, for messages.

    Text is handed over as it is: nothing in it is resolved.

    Raises:
        UserError: a target outside the allow-list, an unknown key, or a value that its owner refuses.
    """
    check_targets(config, path)
    try:
        return _make(config, extra)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_cause(error, path)) from error


def _make(node: Any, extra: dict[str, Any]) -> Any:
    """``node`` with every description in it made, inner ones first; the rest copied."""
    if isinstance(node, list):
        return [_make(value, {}) for value in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _make(value, {}) for key, value in node.items() if key not in OPTIONS} | extra
    if "_target_" not in node:
        return arguments
    made = find(node["_target_"])
    return partial(made, **arguments) if node.get("_partial_") else made(**arguments)


@cache
def _class(name: str) -> type:
    import importlib

    module, _, short = name.rpartition(".")
    found: type = getattr(importlib.import_module(module), short)
    return found


def _check_role(target: str, where: str) -> None:
    base = find_key(where).base
    if base and not issubclass(find(target, where), _class(base)):
        raise UserError(f"{where}._target_={target}: a {base.rpartition('.')[2]} is accepted here")


def _scalar(value: Any) -> bool:
    if isinstance(value, list):
        return all(_scalar(v) and not isinstance(v, list) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def _cause(error: Exception, path: str) -> str:
    """The innermost message behind a wrapper, on one line, with the key it belongs to."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    message = " ".join(str(error).split()) or type(error).__name__
    return message if path and message.startswith(path.split(".")[0]) else f"{path}: {message}"
