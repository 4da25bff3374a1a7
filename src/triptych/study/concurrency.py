"""How many runs of a sweep the local launcher starts at a time: by cores, or a GPU's memory.

The command itself does not import torch. Where there is a GPU, another process counts what the
runs' networks need.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.errors import UserError
from triptych.study import rounds
from triptych.study.formatting import count_noun

N_JOBS = "hydra.launcher.n_jobs"
PATIENCE = 120.0  # seconds for nvidia-smi, and for counting the memory of runs
# -P: modules in the current folder must not shadow installed ones.
COUNT = [sys.executable, "-P", "-c", "from triptych.study.plan import answer; answer()"]


class Card(NamedTuple):
    """A GPU of this machine."""

    name: str
    free: int  # bytes


def find_card() -> Card | None:
    """Return the NVIDIA GPU on which a run of one device trains; None without one."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if program is None or not visible:
        return None
    query = ["--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    first = visible.split(",")[0]
    try:
        done = subprocess.run(
            [program, f"--id={first}", *query],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, mebibytes = done.stdout.strip().rpartition(", ")
    if not mebibytes.isdecimal():  # "[N/A]" where GPU and CPU share their memory
        return Card(name or "NVIDIA GPU", 0)
    return Card(name, int(mebibytes) * 2**20)


def count_memory(configs: Sequence[Any]) -> float | None:
    """Return the bytes that the largest of some runs needs on a GPU, counted in a new process.

    None: torch has no use for the GPU. Infinity: the memory of a run is not known.
    """
    try:
        done = subprocess.run(
            COUNT,
            input=json.dumps(configs, default=str),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return float("inf")
    answer = json.loads(done.stdout.splitlines()[-1])
    return None if answer is None else float(answer)


def set_runs_at_once(config: DictConfig, jobs: Iterable[rounds.Job]) -> str:
    """Set how many runs a local sweep has at a time; return a line that says so, or "".

    On a GPU as many as its memory takes and at most ``cores``; a typed number stays.
    """
    launcher = config.hydra.launcher
    if "n_jobs" not in launcher:
        return ""
    at_once = int(launcher.n_jobs)
    card = None
    typed = not OmegaConf.is_interpolation(launcher, "n_jobs")
    if not typed and config.trainer.accelerator != "cpu":
        card = find_card()
    if card is None:
        return _line(config, at_once) if not typed else ""
    memory = count_memory(_gpu_configs(config, jobs))
    if memory is None:
        return _line(config, at_once)
    launcher.n_jobs = fitting_runs(card, memory, at_once)
    line = f"on one {card.name}: {count_noun(launcher.n_jobs, 'run')} at a time"
    if memory == float("inf"):
        line += f", as the memory of a run is not known; {N_JOBS}=N sets more"
    return line


def fitting_runs(card: Card, memory: float, most: int) -> int:
    """Return how many runs of ``memory`` bytes fit into a GPU's free memory, 1 to ``most``."""
    return max(1, min(most, int(card.free / memory)))


def _line(config: DictConfig, at_once: int) -> str:
    """Describe a sweep on cores; "" if the trainer itself may choose another device of a Mac."""
    if sys.platform == "darwin" and config.trainer.accelerator != "cpu":
        return ""
    threads = max(1, config.cores // max(1, at_once))
    if not OmegaConf.is_interpolation(config, "threads"):
        threads = config.threads
    each = "a core" if threads == 1 else count_noun(threads, "core")
    return f"on the CPU: {count_noun(at_once, 'run')} at a time, {each} each"


def _gpu_configs(config: DictConfig, jobs: Iterable[rounds.Job]) -> list[Any]:
    """Return each setting's resolved configuration; a refused one fails when its run starts."""
    configs = []
    for setting in rounds.count_runs_by_setting(list(jobs)):
        try:
            configs.append(rounds.resolve_setting(config, setting).config)
        except (UserError, HydraException, OmegaConfBaseException):
            continue
    return configs
