"""Compare configurations and name runs, by the role of each key in a run's identity.

The directory of a sweep's job or of a named run does not contain the time, so the same command
finds the same directory. This module also has the resolvers for OmegaConf.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.config.describe import read_yaml
from triptych.config.keys import allowed_target, class_arguments, join, keys_with_roles, role
from triptych.config.signatures import REQUIRED
from triptych.config.source import CONFIGS
from triptych.declare import Role
from triptych.errors import UserError

AXES = {Role.IDENTITY, Role.DRAWING, Role.SPLIT}  # roles of keys that settings may differ in
BUNDLES = ("experiment", "setting", "debug")  # each names several settings that change together
# Keys with these roles are left out of the names of a sweep's runs.
NOT_IN_NAMES = {Role.OUTPUT, Role.LABEL, Role.SEED, Role.START}
# Keys with these roles do not change a run's results, so a resumed run may have other values.
SAME_FIGURES = {
    Role.PATH,
    Role.START,
    Role.LOADING,
    Role.MACHINE,
    Role.REPORTING,
    Role.OUTPUT,
    Role.LABEL,
}
DEVICE_FILES = Path("/dev")
# Beginnings of the names of NVIDIA's devices, also in a Jetson and in WSL, and of AMD's.
GPU_FILES = ("nvidia", "nvhost", "nvgpu", "dxg", "kfd")
ALWAYS_ALLOWED = 8  # number of processes or threads that is always allowed, even with fewer cores
MAX_SWEEP_NAME = 48  # maximum number of characters in the name of a sweep's directory
Changes = dict[str, tuple[Any, Any]]  # {key: (recorded, composed)}


class Absent(Enum):
    """The value that stands for a key which only one of two compared configurations has."""

    ABSENT = "none"

    def __repr__(self) -> str:
        return self.value


ABSENT = Absent.ABSENT


def role_in(config: Mapping[str, Any], key: str) -> Role:
    """Return the role of a dotted key or group in ``config``, which is {dotted key: value}."""
    parent = key.replace("/", ".").rpartition(".")[0]
    return role(key, str(config.get(f"{parent}._target_", "")))


def default_value(config: Mapping[str, Any], key: str) -> Any:
    """Return the default of a dotted key, for a configuration whose version did not have this key.

    Return ABSENT if the key has no default.
    """
    top = _top_level_defaults()
    if key in top:
        return top[key]
    parent, _, name = key.rpartition(".")
    argument = class_arguments(allowed_target(str(config.get(f"{parent}._target_", ""))))[0].get(
        name
    )
    if argument is None or argument.default is REQUIRED:
        return ABSENT
    return argument.default


@cache
def default_choice(group: str) -> str:
    """Return the choice that ``train.yaml`` names for a group; "" if it names none."""
    for entry in read_yaml(CONFIGS / "train.yaml")["defaults"]:
        if isinstance(entry, dict) and group in entry:
            return str(entry[group])
    return ""


@cache
def _top_level_defaults() -> dict[str, Any]:
    """Return {dotted key: value} of the keys that ``train.yaml`` itself sets."""
    config = {**read_yaml(CONFIGS / "train.yaml")}
    del config["defaults"]
    return dict(flatten_config(config))


def flatten_config(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a plain configuration; lists and empty groups are values."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten_config(value, join(prefix, key))
    else:
        yield prefix, node


def data_identity(data: dict[str, Any]) -> dict[str, Any]:
    """Return those keys of a ``data`` configuration that determine the distribution of the data."""
    target = data.get("_target_", "")
    return {
        key: value
        for key, value in flatten_config(data)
        if role(f"data.{key}", target) is Role.DATA
    }


def describe(data: dict[str, Any]) -> str:
    """Describe a data configuration in a few words: class name and arguments."""
    identity = data_identity(data)
    identity.pop("_target_", None)
    settings = ", ".join(f"{key}={value}" for key, value in identity.items())
    name = data["_target_"].rpartition(".")[2]
    return f"{name}({settings})"[:120]


def differences(recorded: Any, composed: Any, key: str = "") -> Changes:
    """Return {key: (recorded, composed)} of the keys whose values differ.

    Keys that only affect where or how a command starts are left out.
    """
    if isinstance(recorded, dict) and isinstance(composed, dict):
        differing: Changes = {}
        for name in dict.fromkeys([*recorded, *composed]):
            inner = recorded.get(name, ABSENT), composed.get(name, ABSENT)
            differing |= differences(*inner, join(key, name))
        return differing
    if _only_affects_start(key) or _equal_values(recorded, composed):
        return {}
    return {key: (recorded, composed)}


def _only_affects_start(key: str) -> bool:
    """Return whether a key affects only where or how a command starts, not the run."""
    if key == "optimized_metric":  # only sweeps read it, and its default has changed
        return True
    return role(key) is Role.START or role(key.partition(".")[0]) is Role.PATH


def _equal_values(recorded: Any, composed: Any) -> bool:
    """Return whether two values are equal; null equals a missing key."""
    nothing = (None, ABSENT)
    if recorded in nothing:
        return composed in nothing
    return bool(recorded == composed)


def result_changing_differences(recorded: dict[str, Any], config: dict[str, Any]) -> Changes:
    """Return the ``differences`` of keys that may change the result, without paths, labels etc."""
    flat = dict(flatten_config(recorded))
    others = differences(recorded, config)
    return {key: pair for key, pair in others.items() if role_in(flat, key) not in SAME_FIGURES}


def describe_differences(differing: Changes) -> str:
    """Format the first few differences in one line: "seed: 1 -> 2; ..."."""
    lines = [f"{key}: {was!r} -> {composed!r}" for key, (was, composed) in differing.items()]
    if len(lines) > 5:
        lines[5:] = ["..."]
    return "; ".join(lines)


def plain_name(text: str) -> str:
    """Replace each sequence of characters that file names should not have by one hyphen."""
    name = re.sub(r"[^A-Za-z0-9=,._+-]+", "-", text).strip("-.") or "run"
    return re.sub(r"\.(?=old-[0-9a-f]+$)", "-", name)  # names of replaced runs end with .old-HASH


def slug(text: str, limit: int = 120) -> str:
    """Turn ``text`` into a file name; add a hash if characters were replaced or cut off."""
    safe = plain_name(text)
    if safe == text and len(safe) <= limit:
        return safe
    return f"{safe[: limit - 9].rstrip('-.,')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_name(name: Any) -> str:
    """Return the run's name; for a run without a name, the time and a short id."""
    if name not in (None, ""):
        return slug(str(name))
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"


def shared_overrides(cfg: DictConfig) -> dict[str, str]:
    """Return {key: override} of the typed overrides that are equal for all runs of a sweep.

    In a sweep without a name, typed choices of config groups are left out.
    """
    axes = set(cfg.hydra.sweeper.get("params") or {})
    if explicit_sweep_name(cfg) is None:
        axes |= set(cfg.hydra.runtime.choices)
    shared = {}
    for override in _typed_overrides(cfg):
        key = override.key_or_group
        if override.is_sweep_override() or key in axes or role(key) in NOT_IN_NAMES:
            continue
        shared[key] = str(override.input_line)
    return shared


def grid_keys(cfg: DictConfig) -> set[str]:
    """Return the keys for which several values were typed on the command line."""
    return {
        override.key_or_group for override in _typed_overrides(cfg) if override.is_sweep_override()
    }


def _typed_overrides(cfg: DictConfig) -> list[Any]:
    """Parse the overrides of the command line into Hydra's override objects."""
    # Only sweeps need the parser, whose import is slow.
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(cfg.hydra.overrides.task))


def sweep_name(cfg: DictConfig) -> str:
    """Return the name of a sweep's directory: the typed ``name`` alone, or else a generated one.

    The generated name joins the name of the sweep's file and the shared overrides, and is shortened
    and hashed if it is long.
    """
    if any(override.startswith("name=") for override in cfg.hydra.overrides.task):
        return slug(str(cfg.name))
    return slug(
        ",".join([explicit_sweep_name(cfg) or "sweep", *sorted(shared_overrides(cfg).values())]),
        MAX_SWEEP_NAME,
    )


def explicit_sweep_name(cfg: DictConfig) -> str | None:
    """Return a sweep's key ``name``, or else its choice of ``experiment``; None without both."""
    name = cfg.get("name") or cfg.hydra.runtime.choices.get("experiment")
    return None if name is None else str(name)


def not_in_names() -> list[str]:
    """Return the keys that are left out of the names of a sweep's runs."""
    return [key for key in keys_with_roles(*NOT_IN_NAMES) if key not in ("seed", "experiment")]


def quote(text: str) -> str:
    """Quote ``text`` for Hydra's grammar, where a backslash escapes only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda match: 2 * match[1] + "\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def root() -> str:
    """Return the root folder of data and logs: TRIPTYCH_ROOT, or else the repository."""
    place = os.environ.get("TRIPTYCH_ROOT") or str(Path(__file__).parents[3])
    if "${" in place:
        raise UserError(f"TRIPTYCH_ROOT={place}: must not contain ${{; use another folder")
    return place


def cores() -> int:
    """Return the number of cores that this process may use."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    if cpus:  # not all clusters restrict a job to its cores
        return int(cpus)
    if hasattr(os, "sched_getaffinity"):  # not on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_gpu() -> bool:
    """Return whether this machine has the device file of a GPU that torch may use by CUDA or ROCm.

    Importing torch to ask it takes seconds. Its answer may still be that it cannot use the GPU.
    """
    return any(file.name.startswith(GPU_FILES) for file in DEVICE_FILES.glob("*"))


def check_cores(config: Mapping[str, Any], *keys: str) -> None:
    """Raise UserError if one of ``keys`` requests more processes or threads than are allowed.

    Allowed are as many as the machine has cores, and always ``ALWAYS_ALLOWED``.
    """
    most = max(cores(), ALWAYS_ALLOWED)
    for key in keys:
        if (config.get(key) or 1) > most:
            raise UserError(
                f"{key}={config[key]}: must be 1 to {most} on this machine's {cores()} CPU cores"
            )


def threads(cores: int) -> int:
    """Return the default number of threads of a run: TRIPTYCH_THREADS, or else ``cores``."""
    return int(os.environ.get("TRIPTYCH_THREADS") or cores)


def gpus(accelerator: str, devices: int) -> int | None:
    """Return how many GPUs a job of SLURM (per node) or Ray requests; None without GPUs."""
    return devices if accelerator in ("gpu", "cuda") else None


def register_resolvers() -> None:
    """Register functions of this module as resolvers of OmegaConf, for use as in ``${cores:}``."""
    for resolver in (slug, cores, threads, root, not_in_names, gpus):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    # This resolver is cached, so that a configuration keeps the name that it first got.
    OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
