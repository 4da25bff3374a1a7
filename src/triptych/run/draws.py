"""Choose a run's stream of random numbers: that of its checkpoint, or of the key ``draws``."""

import torch

from triptych.diffusion.block_draws import STREAMS
from triptych.diffusion.draws import BATCH_DRAWS, BatchDraws
from triptych.records import Checkpoint, Config
from triptych.run.directory import RunDirectory, log_line


def recorded_draws(checkpoint: Checkpoint) -> BatchDraws:
    """Return the random-number stream that a checkpoint records.

    Checkpoints of earlier versions record none; their stream is "batch".
    """
    return STREAMS[checkpoint["triptych"].get("draws", BATCH_DRAWS.name)]


def choose_draws(
    run: RunDirectory, config: Config, recorded: BatchDraws | None, device: torch.device
) -> BatchDraws:
    """Return the stream ``recorded`` in a run's checkpoint; if None, that of the key ``draws``."""
    name = config.get("draws", "auto")
    if recorded is not None:
        if name not in ("auto", recorded.name):
            problem = f"not used, as the checkpoint was trained with draws={recorded.name}"
            log_line(run, f"draws={name}: {problem}; pass force=true to start over")
        return recorded
    if name != "auto":
        return STREAMS[name]
    if device.type == "cpu":
        return BATCH_DRAWS
    return STREAMS["blocks"]
