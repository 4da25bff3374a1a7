"""What of a configuration identifies a run, its data and its directory, by the roles of its keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role

AXES = {Role.IDENTITY, Role.DRAWING, Role.SPLIT}
# the same directory with any value of these: they say how to run, not what
NOT_IN_NAMES = {Role.OUTPUT, Role.LABEL, Role.SEED, Role.START}


def role_in(config: Mapping[str, Any], key: str) -> Role:
    """The role of a dotted key, or of a group of choices, in a configuration given as {dotted key: value}."""
    parent = key.replace("/", ".").rpartition(".")[0]
    return role(key, str(config.get(f"{parent}._target_", "")))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain configuration with its value; lists and empty groups are values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def data_identity(data: dict[str, Any]) -> dict[str, Any]:
    """What a ``data`` configuration says of the distribution itself."""
    return {
        key: value
        for key, value in leaves(data)
        if role(f"data.{key}", data.get("_target_", "")) is Role.DATA
    }


def describe(data: dict[str, Any]) -> str:
    """A data configuration in a few words: the class's name and what it was told."""
    told = ", ".join(f"{k}={v}" for k, v in data_identity(data).items() if k[0] != "_")
    name = data["_target_"].rpartition(".")[2]
    return f"{name}({told})"[:120]
