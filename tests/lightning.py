"""Lightning's trainer for tests without a run: it prints, logs and keeps nothing."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def trainer(path: Path, steps: int = -1, **keys: Any) -> pl.Trainer:
    """Return a trainer on the CPU; ``steps``: the length of the fit, and between validations."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    known: dict[str, Any] = dict.fromkeys(quiet, False) | {
        "accelerator": "cpu",
        "default_root_dir": path,
    }
    if steps > 0:
        known |= {
            "max_steps": steps,
            "max_epochs": -1,
            "val_check_interval": steps,
            "log_every_n_steps": 5,
        }
        known |= {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    return pl.Trainer(**known | keys)
