"""Lightning's trainer for tests that need no run: nothing is printed, logged or kept."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def trainer(path: Path, steps: int = -1, **keys: Any) -> pl.Trainer:
    """On the CPU; ``steps``: as long as it trains, and how often it validates."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    known: dict[str, Any] = dict.fromkeys(quiet, False) | {"accelerator": "cpu", "default_root_dir": path}
    if steps > 0:
        known |= {"max_steps": steps, "max_epochs": -1, "val_check_interval": steps, "log_every_n_steps": 5}
        known |= {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    return pl.Trainer(**known | keys)
