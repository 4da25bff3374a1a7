"""Choose how many runs the local launcher starts at a time, by cores or by a GPU's memory.

The command itself does not import torch. If there is a GPU, another process counts the memory that
the runs' networks need.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from triptych.records import Config
from triptych.study.formatting import count_noun

PATIENCE = 120.0  # timeout in seconds of nvidia-smi, and of the process that counts memory
COMMAND_ERRORS = (OSError, subprocess.SubprocessError)
QUERY = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
# -P: modules in the current folder must not shadow installed ones.
COUNT_MEMORY = [sys.executable, "-P", "-c", "from triptych.study.plan import answer; answer()"]


class Card(NamedTuple):
    """A GPU of this machine."""

    name: str
    free: int  # bytes


def find_card() -> Card | None:
    """Return the NVIDIA GPU on which a run of one device trains; None without one."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "none"
    with suppress(*COMMAND_ERRORS):
        name, _, mebibytes = _last_printed_line([*QUERY, f"--id={first}"], "").rpartition(", ")
        # Some drivers give no number but "[N/A]" or "[Insufficient Permissions]".
        return Card(name, int(mebibytes) * 2**20 if mebibytes.isdecimal() else 0)
    return None


def count_memory(configs: Sequence[Config]) -> float | None:
    """Return the bytes that the largest of some runs needs on a GPU, counted in a new process.

    None: torch cannot use the GPU. Infinity: the memory of a run is not known.
    """
    with suppress(*COMMAND_ERRORS):
        return json.loads(_last_printed_line(COUNT_MEMORY, json.dumps(configs)))  # type: ignore[no-any-return]  # a number or null
    return math.inf


def _last_printed_line(command: list[str], text: str) -> str:
    """Return the last line that a command prints, given a text on its standard input."""
    printed = subprocess.check_output(
        command,
        input=text,
        text=True,
        errors="replace",
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
    return printed.strip().rpartition("\n")[2]


def set_runs_at_once(config: DictConfig, configs: Sequence[Config]) -> str:
    """Set how many runs a local sweep starts at a time, and return a line with the number.

    ``configs``: the settings' configurations. A GPU gets as many runs as fit in its memory, at most
    ``cores``. With another launcher, or if the number was typed, nothing is set and the line is "".
    """
    launcher = config.hydra.launcher
    if "n_jobs" not in launcher or not OmegaConf.is_interpolation(launcher, "n_jobs"):
        return ""
    on_cores = f"{count_noun(launcher.n_jobs, 'run')} at a time, a core each"
    if config.trainer.accelerator == "cpu":
        return f"on the CPU: {on_cores}"
    card = find_card()
    if card is None:
        return f"no NVIDIA GPU here: {on_cores}"
    memory = count_memory(configs)
    if memory is None:
        return f"on the CPU: {on_cores}"
    launcher.n_jobs = fitting_runs(card, memory, launcher.n_jobs)
    line = f"on one {card.name}: {count_noun(launcher.n_jobs, 'run')} at a time"
    if math.isinf(memory):
        line += ", as the memory of a run is not known; pass hydra.launcher.n_jobs=N for more"
    return line


def fitting_runs(card: Card, memory: float, most: int) -> int:
    """Return how many runs that need ``memory`` bytes fit on a GPU at once, 1 to ``most``."""
    return max(1, min(most, int(card.free / memory)))
