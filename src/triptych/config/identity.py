"""Identify a run, its data and its directory by the roles of its keys; with the resolvers of OmegaConf.

No clock enters the name of a sweep's job or a named run: the same command finds the same directory.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.config.describe import read_yaml
from triptych.config.keys import allowed, of_class, role, with_roles
from triptych.config.signatures import REQUIRED
from triptych.config.source import CONFIGS
from triptych.declare import Role
from triptych.errors import UserError

AXES = {Role.IDENTITY, Role.DRAWING, Role.SPLIT}
BUNDLES = ("experiment", "setting", "debug")  # several settings under one name, to change together
# the same directory with any value of these: they say how to run, not what
NOT_IN_NAMES = {Role.OUTPUT, Role.LABEL, Role.SEED, Role.START}
# what may change between a run's checkpoint and its record: the figures stay the same
SAME_FIGURES = {Role.PATH, Role.START, Role.LOADING, Role.MACHINE, Role.REPORTING, Role.OUTPUT, Role.LABEL}
SIMULATED = 8  # processes or threads on fewer cores: slow, but a way to see what several would do
SWEEP = 48  # characters of a sweep's directory
Changes = dict[str, tuple[Any, Any]]  # {key: (recorded, composed)}


class _Absent:
    def __repr__(self) -> str:
        return "none"


ABSENT = _Absent()  # the value of a key that one of two configurations does not have


def role_in(config: Mapping[str, Any], key: str) -> Role:
    """Return the role of a dotted key, or of a group of choices, in a configuration {dotted key: value}."""
    parent = key.replace("/", ".").rpartition(".")[0]
    return role(key, str(config.get(f"{parent}._target_", "")))


def default_of(config: Mapping[str, Any], key: str) -> Any:
    """Return the default of a dotted key that an earlier version's configuration lacks; ABSENT for none."""
    if key in (top := _defaults_at_top()):
        return top[key]
    parent, _, name = key.rpartition(".")
    target = allowed(str(config.get(f"{parent}._target_", "")))  # a stranger's may name any file
    known = of_class(target)[0].get(name) if target else None
    return ABSENT if known is None or known.default is REQUIRED else known.default


@cache
def _defaults_at_top() -> dict[str, Any]:
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


def differences(recorded: Any, composed: Any, key: str = "") -> Changes:
    """Return {key: (recorded, composed)} of differing keys that belong to a run's identity."""
    if isinstance(recorded, dict) and isinstance(composed, dict):
        differing: Changes = {}
        for name in dict.fromkeys([*recorded, *composed]):
            below = recorded.get(name, ABSENT), composed.get(name, ABSENT)
            differing |= differences(*below, f"{key}.{name}" if key else str(name))
        return differing
    # what a sweep optimises, only the sweep reads: earlier versions had another default
    may = role(key.split(".")[0]) is Role.PATH or role(key) is Role.START or key == "optimized_metric"
    # a key that is null is as good as not there
    values = [None if value is ABSENT else value for value in (recorded, composed)]
    return {} if may or values[0] == values[1] else {key: (recorded, composed)}


def other_figures(recorded: dict[str, Any], config: dict[str, Any]) -> Changes:
    """Return the ``differences`` that make two configurations different runs."""
    flat = dict(leaves(recorded))
    others = differences(recorded, config)
    return {key: pair for key, pair in others.items() if role_in(flat, key) not in SAME_FIGURES}


def describe_differences(differing: Changes) -> str:
    """Format a few differences: "seed: 1 -> 2; ..."."""
    few = [f"{key}: {was!r} -> {composed!r}" for key, (was, composed) in [*differing.items()][:5]]
    return "; ".join(few + ["..."] * (len(differing) > 5))


def plain_name(text: str) -> str:
    """Replace each run of characters unsuitable for file names by a hyphen."""
    name = re.sub(r"[^A-Za-z0-9=,._+-]+", "-", text).strip("-.") or "run"
    return re.sub(r"\.(?=old-[0-9a-f]+$)", "-", name)  # so are runs called that are kept aside


def slug(text: str, limit: int = 120) -> str:
    """Turn ``text`` into a file name; a hash is added where characters or length were cut."""
    safe = plain_name(text)
    if safe == text and len(safe) <= limit:
        return safe
    return f"{safe[: limit - 9].rstrip('-.,')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_name(name: Any) -> str:
    """Return the run's name, or a new one: time and a short id."""
    if name not in (None, ""):
        return slug(str(name))
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(3)}"


def shared_overrides(cfg: DictConfig) -> dict[str, str]:
    """Return {key: override} that all cells of a sweep share; an unnamed sweep's choices are axes."""
    axes = set(cfg.hydra.sweeper.get("params") or {})
    if own_name(cfg) is None:
        axes |= set(cfg.hydra.runtime.choices)
    return {
        o.key_or_group: str(o.input_line)
        for o in _typed(cfg)
        if not o.is_sweep_override()
        and o.key_or_group not in axes
        and role(o.key_or_group) not in NOT_IN_NAMES
    }


def grid_keys(cfg: DictConfig) -> set[str]:
    """Return the keys with several values on the command line."""
    return {o.key_or_group for o in _typed(cfg) if o.is_sweep_override()}


def _typed(cfg: DictConfig) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # slow, and of sweeps alone

    return OverridesParser.create().parse_overrides(list(cfg.hydra.overrides.task))


def sweep_name(cfg: DictConfig) -> str:
    """Return the sweep's directory name: the typed one, or a file's with shared overrides, cut and hashed."""
    if any(o.startswith("name=") for o in cfg.hydra.overrides.task):
        return slug(str(cfg.name))
    return slug(",".join([own_name(cfg) or "sweep", *sorted(shared_overrides(cfg).values())]), SWEEP)


def own_name(cfg: DictConfig) -> str | None:
    """Return the sweep's explicit name, or its experiment's."""
    name = cfg.get("name") or cfg.hydra.runtime.choices.get("experiment")
    return str(name) if name else None


def not_in_names() -> list[str]:
    """Return the keys left out of names of cells; seed and experiment stay in."""
    return [key for key in with_roles(*NOT_IN_NAMES) if key not in ("seed", "experiment")]


def quote(text: str) -> str:
    """Quote ``text`` for Hydra's grammar, where a backslash escapes only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def root() -> str:
    """Return the root of data and logs: TRIPTYCH_ROOT, else the repository."""
    return os.environ.get("TRIPTYCH_ROOT") or str(Path(__file__).parents[3])


def in_root(path: Path) -> str:
    """Suggest the same path below ``root``, or a run or sweep of that name; else ""."""
    there, logs = Path(root()) / os.path.relpath(path), Path(root()) / "logs"
    inside = ".." not in there.parts
    named = [logs / kind / path.name for kind in ("runs", "sweeps")] * bool(path.name)
    for other in [there] * inside + named:
        if other.exists() and not (path.exists() and other.samefile(path)):
            return f"; did you mean {other}?"
    return ""


def check_environment() -> None:
    """Check the environment variables that configurations use; UserError for an invalid one."""
    if "${" in root():
        raise UserError(f"TRIPTYCH_ROOT={root()}: ${{ begins a reference to a key; choose another folder")
    for name in ("TRIPTYCH_THREADS", "SLURM_CPUS_PER_TASK"):
        if (value := os.environ.get(name) or "1").isdecimal() and int(value):
            continue
        raise UserError(f"{name}={value}: must be a whole number of at least 1; set it so, or unset it")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # not every cluster binds a job to them
        return int(cpus)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(config: Mapping[str, Any], *keys: str) -> None:
    """Refuse a number of processes or threads that is far beyond this machine's cores: UserError."""
    most = max(cores(), SIMULATED)
    for key in keys:
        if (config.get(key) or 1) > most:
            problem = f"must be 1 to {most} on this machine's {cores()} CPU cores"
            raise UserError(f"{key}={config[key]}: {problem}")


def threads(cores: int) -> int:
    """Return the threads of each run: a sweep divides the cores among its runs."""
    number = os.environ.get("TRIPTYCH_THREADS")
    return int(number) if number else cores


def unread_threads(threads: int, overrides: Iterable[str]) -> str:
    """Return a line if ``OMP_NUM_THREADS`` is another number than a run's, which nobody chose; else ""."""
    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    chosen = any(one.startswith("threads=") for one in overrides) or os.environ.get("TRIPTYCH_THREADS")
    if chosen or threads != cores() or number in ("", str(threads)):
        return ""
    return f"OMP_NUM_THREADS={number}: a run does not read it; type threads={number}"


def gpus(accelerator: str, devices: int) -> int | None:
    """Return the GPUs per node that a SLURM job requests."""
    return devices if accelerator in ("gpu", "cuda") else None


def register_resolvers() -> None:
    """Register the functions above with OmegaConf, as in ``${cores:}``."""
    for one in (slug, run_name, cores, threads, root, not_in_names, gpus):
        OmegaConf.register_new_resolver(one.__name__, one, use_cache=one is run_name, replace=True)
