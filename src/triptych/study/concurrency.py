"""Choose how many runs the local launcher starts at a time, by cores or by a GPU's memory.

The command itself does not import torch. If there is a GPU, another process counts the memory that
the runs' networks need.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from triptych.config.identity import has_gpu
from triptych.records import Config
from triptych.study.formatting import count_noun

PATIENCE = 120.0  # timeout in seconds of the process that counts memory
# -P: modules in the current folder must not shadow installed ones.
COUNT_MEMORY = [sys.executable, "-P", "-c", "from triptych.study.plan import answer; answer()"]


class Card(NamedTuple):
    """A GPU of this machine, and the memory of the sweep's runs."""

    name: str
    free: int  # bytes
    needed: float  # bytes that the largest run needs; infinity if they are not known


def find_card(configs: Sequence[Config]) -> Card | None:
    """Return the GPU on which a run of one device trains, as torch sees it; None without one.

    A new process imports torch and counts the memory of the runs with these configurations.
    """
    if not has_gpu():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        printed = subprocess.check_output(
            COUNT_MEMORY,
            input=json.dumps(configs),
            text=True,
            errors="replace",
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
        answer = json.loads(printed.strip().rpartition("\n")[2])
        return Card(**answer) if answer else None
    return Card("GPU", 0, math.inf)


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
    card = find_card(configs)
    if card is None:
        return f"no CUDA GPU here: {on_cores}"
    launcher.n_jobs = fitting_runs(card, launcher.n_jobs)
    line = f"on one {card.name}: {count_noun(launcher.n_jobs, 'run')} at a time"
    if math.isinf(card.needed):
        line += ", as the memory of a run is not known; pass hydra.launcher.n_jobs=N for more"
    return line


def fitting_runs(card: Card, most: int) -> int:
    """Return how many of the sweep's runs fit on a GPU at once, 1 to ``most``."""
    return max(1, min(most, int(card.free / card.needed)))
