"""Objects from plain configuration: one way in, with an allow-list and errors of one line."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from triptych.config.nearest import nearest
from triptych.errors import UserError

# A config comes from a checkpoint too, perhaps a stranger's: it may name what the house uses, nothing else.
ALLOWED = ("triptych.", "torch.optim.", "pytorch_lightning.")


@cache
def parameters_of(target: str) -> tuple[frozenset[str], bool]:
    """(argument names of ``target``, whether it takes further keywords). UserError if it cannot be had."""
    if not target.startswith(ALLOWED):
        raise UserError(f"_target_={target}: only targets under {', '.join(ALLOWED)} are accepted")
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target}: cannot be imported ({str(error).splitlines()[0]})") from error
    names: set[str] = set()
    more = False
    # **keywords of a class are its parents' arguments; follow them up
    for owner in inspect.getmro(found) if inspect.isclass(found) else (found,):
        function = owner.__dict__.get("__init__") if inspect.isclass(owner) else owner
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not more:
            break
    return frozenset(names - {"self"}), more


def targets(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Every dictionary with a ``_target_`` in a plain config, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))


def check_targets(config: Any, path: str = "") -> None:
    """Every target allowed, every key one of its arguments; else UserError with the nearest name."""
    for where, node in targets(config, path):
        names, more = parameters_of(node["_target_"])
        for key in node:
            if not (more or key in names or key in ("_target_", "_partial_", "_convert_")):
                raise UserError(
                    f"{where}.{key}={node[key]!r}: {node['_target_']} has no such argument, "
                    f"{nearest(key, list(names))}"
                )


def build(config: dict, path: str, **extra: Any) -> Any:
    """The object that ``config`` describes; ``path`` is its place in the configuration, for messages.

    Raises:
        UserError: a target outside the allow-list, an unknown key, or a value that its owner refuses.
    """
    from hydra.utils import instantiate

    check_targets(config, path)
    partial = config.get("_partial_", False)
    try:
        # the extras are objects and stay out of Hydra's hands, which would copy and convert them
        made = instantiate(config | {"_partial_": True}, _convert_="all")
        return made if partial else made(**extra)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_cause(error, path)) from error


def _cause(error: Exception, path: str) -> str:
    """The innermost message behind Hydra's wrapper, on one line, with the key it belongs to."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    message = " ".join(str(error).split("full_key:")[0].split()) or type(error).__name__
    return message if path and message.startswith(path.split(".")[0]) else f"{path}: {message}"
