"""What every model is built with, from the configuration and the data."""

from typing import Any

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.errors import UserError


def common(config: dict, data: DataModule) -> dict[str, Any]:
    """The keywords that all LightningModules share; UserError for numbers of draws that are none."""
    return {
        "optimizer": build(config["optimizer"], "optimizer"),
        "lr_schedule": build(config["lr_schedule"], "lr_schedule"),
        "shape": data.shape,
        "discrete": data.levels is not None,
        "seed": config["seed"],
        "repeats": positive(config, "bound", "repeats"),
        "val_repeats": positive(config, "bound", "val_repeats"),
    }


def positive(config: dict, group: str, key: str) -> int:
    """``config[group][key]`` if it is a whole number from 1; else UserError."""
    value: Any = config[group][key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{group}.{key}={value!r}: a whole number from 1 is accepted")
    return value
