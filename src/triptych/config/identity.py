"""Identify a run, its data and its directory by the roles of its keys."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from triptych.config.describe import read_yaml
from triptych.config.folders import CONFIGS
from triptych.config.keys import allowed, of_class, role
from triptych.config.source import REQUIRED
from triptych.declare import Role

AXES = {Role.IDENTITY, Role.DRAWING, Role.SPLIT}
BUNDLES = ("experiment", "setting", "debug")  # several settings under one name, to change together
# the same directory with any value of these: they say how to run, not what
NOT_IN_NAMES = {Role.OUTPUT, Role.LABEL, Role.SEED, Role.START}
# what may change between a run's checkpoint and its record: the figures stay the same
SAME_FIGURES = {Role.PATH, Role.START, Role.LOADING, Role.MACHINE, Role.REPORTING, Role.OUTPUT, Role.LABEL}
ABSENT = object()  # of a key that one of two configurations does not have


def role_in(config: Mapping[str, Any], key: str) -> Role:
    """Return the role of a dotted key, or of a group of choices, in a configuration {dotted key: value}."""
    parent = key.replace("/", ".").rpartition(".")[0]
    return role(key, str(config.get(f"{parent}._target_", "")))


def usual(config: Mapping[str, Any], key: str) -> Any:
    """Return the default of a dotted key that an earlier version's configuration lacks; ABSENT for none."""
    if key in (top := _usual_at_top()):
        return top[key]
    parent, _, name = key.rpartition(".")
    target = allowed(str(config.get(f"{parent}._target_", "")))  # a stranger's may name any file
    known = of_class(target)[0].get(name) if target else None
    return ABSENT if known is None or known.default is REQUIRED else known.default


@cache
def _usual_at_top() -> dict[str, Any]:
    return dict(leaves({k: v for k, v in read_yaml(CONFIGS / "train.yaml").items() if k != "defaults"}))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a plain configuration; lists and empty groups are values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def data_identity(data: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a ``data`` configuration that identifies the distribution."""
    return {k: v for k, v in leaves(data) if role(f"data.{k}", data.get("_target_", "")) is Role.DATA}


def describe(data: dict[str, Any]) -> str:
    """Describe a data configuration briefly: class name and arguments."""
    settings = ", ".join(f"{k}={v}" for k, v in data_identity(data).items() if k[0] != "_")
    name = data["_target_"].rpartition(".")[2]
    return f"{name}({settings})"[:120]


def differences(recorded: Any, composed: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {key: (recorded, composed)} of differing keys that belong to a run's identity."""
    if isinstance(recorded, dict) and isinstance(composed, dict):
        differing: dict[str, tuple[Any, Any]] = {}
        for name in dict.fromkeys([*recorded, *composed]):
            below = recorded.get(name, ABSENT), composed.get(name, ABSENT)
            differing |= differences(*below, f"{key}.{name}" if key else str(name))
        return differing
    # what a sweep optimises, only the sweep reads: earlier versions had another default
    may = role(key.split(".")[0]) is Role.PATH or role(key) is Role.START or key == "optimized_metric"
    # a key that is null is as good as not there
    values = [None if value is ABSENT else value for value in (recorded, composed)]
    return {} if may or values[0] == values[1] else {key: (recorded, composed)}


def other_figures(recorded: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the ``differences`` that make two configurations different runs."""
    flat = dict(leaves(recorded))
    others = differences(recorded, config)
    return {key: pair for key, pair in others.items() if role_in(flat, key) not in SAME_FIGURES}


def describe_differences(differing: dict[str, tuple[Any, Any]]) -> str:
    """Format a few differences: "seed: 1 -> 2; ..."."""
    pairs = {key: ["none" if v is ABSENT else repr(v) for v in pair] for key, pair in differing.items()}
    few = [f"{key}: {was} -> {composed}" for key, (was, composed) in [*pairs.items()][:5]]
    return "; ".join(few + ["..."] * (len(pairs) > 5))
