"""Loggers of a run: metrics.csv always, W&B as configured, closed properly whatever happened."""

import netrc
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from triptych.config.build import build
from triptych.errors import UserError
from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv

_lost: list[str] = []  # said once: W&B's own process has died
MODES = ("auto", "online", "offline", "disabled")


def build_loggers(config: dict, provenance: dict, run: RunDirectory) -> list[Logger]:
    """metrics.csv, then whatever ``logger`` names: W&B by its own short form, others by their target."""
    loggers: list[Logger] = [MetricsCsv(run / "metrics.csv")]
    for name, node in (config["logger"] or {}).items():
        if not node:
            continue
        if name == "wandb":
            loggers.append(_wandb(dict(node), config, provenance, run))
        else:
            loggers.append(build(node, f"logger.{name}", save_dir=str(run.path)))
    return loggers


def _wandb(node: dict, config: dict, provenance: dict, run: RunDirectory) -> Logger:
    """One W&B run per run directory, the same one when the run goes on: its id is the directory's."""
    mode = node.pop("mode")
    if mode not in MODES:
        raise UserError(f"logger.wandb.mode={mode}: one of {', '.join(MODES)} is accepted")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    os.environ["WANDB_MODE"] = mode
    os.environ.setdefault("WANDB_SILENT", "true")
    for variable, folder in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ.setdefault(
            variable, str(run / "wandb" / folder)
        )  # what W&B would put into the home directory
    import wandb

    logger = build(
        node,
        "logger.wandb",
        save_dir=str(run.path),
        offline=mode == "offline",
        id=provenance["id"],
        name=run.path.name,
        group=node.get("group") or run.path.parent.name,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    logger._wandb_init.pop(
        "anonymous", None
    )  # Lightning passes what W&B has retired, and W&B says so at each start
    logger.log_hyperparams(config)
    for method in ("log_metrics", "finalize"):
        setattr(logger, method, without_wandb_if_lost(getattr(logger, method)))
    return logger


def without_wandb_if_lost(method: Callable) -> Callable:
    """``method``; once W&B's process is gone, nothing: the run goes on, and metrics.csv has its figures."""

    @wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if _lost:
            return None
        try:
            return method(*arguments, **keywords)
        except Exception as error:  # W&B raises what its broken pipe raises, under many names
            _lost.append(str(error))
            print("W&B has died and is done without: metrics.csv has the figures", file=sys.stderr)
            return None

    return call


def leave(code: int = 0) -> None:
    """End the process; without W&B's farewell, a traceback, where it has died before."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _lost:
        os._exit(code)


def _logged_in() -> bool:
    """Whether W&B has a key to use, without asking it (that takes a network)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def close_loggers(loggers: list[Logger], ok: bool) -> None:
    """Finish each logger; W&B is told whether the run succeeded."""
    for logger in loggers:
        if isinstance(logger, MetricsCsv):
            logger.flush()
        elif type(logger).__name__ == "WandbLogger":
            experiment: Any = logger.experiment  # type: ignore[attr-defined]  # Lightning's base has none
            if hasattr(experiment, "finish"):
                without_wandb_if_lost(experiment.finish)(exit_code=0 if ok else 1)
        else:
            logger.finalize("success" if ok else "failed")
