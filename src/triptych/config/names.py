"""OmegaConf resolvers: directory names that follow from the configuration, and facts of the machine.

No clock enters the name of a sweep's job or a named run: the same command finds the same directory.
"""

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from triptych.config.habits import closest
from triptych.config.identity import NOT_IN_NAMES
from triptych.config.keys import role, with_roles
from triptych.errors import UserError

SWEEP = 48  # characters of a sweep's directory


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


def _typed(cfg: DictConfig) -> list[Override]:
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
    """Suggest the same path below ``root``, where the current folder has none, or a near name; else ""."""
    there = Path(root()) / os.path.relpath(path)
    inside = ".." not in there.parts
    if inside and there.exists():
        return f"; did you mean {there}?"
    for folder in (path.parent, *[there.parent] * inside):
        with suppress(OSError):
            if near := closest(path.name, sorted(os.listdir(folder))):
                return f"; did you mean {folder / near}?"
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


def threads(cores: int) -> int:
    """Return the threads of each run: a sweep divides the cores among its runs."""
    return int(os.environ.get("TRIPTYCH_THREADS") or cores)


def gpus(accelerator: str, devices: int) -> int | None:
    """Return the GPUs per node that a SLURM job requests."""
    return devices if accelerator in ("gpu", "cuda") else None


def register_resolvers() -> None:
    """Register the functions above with OmegaConf, as in ``${cores:}``."""
    for one in (slug, run_name, cores, threads, root, not_in_names, gpus):
        OmegaConf.register_new_resolver(one.__name__, one, use_cache=one is run_name, replace=True)
