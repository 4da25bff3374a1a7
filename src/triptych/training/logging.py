"""Loggers of a run: metrics.csv always, those that follow it as configured, closed whatever happened."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.loggers import Logger

from triptych.config.build import build
from triptych.config.nearest import nearest
from triptych.config.schema import MLflow as MLflowKeys
from triptych.config.schema import Wandb
from triptych.errors import UserError
from triptych.runs.directory import RunDirectory
from triptych.runs.metrics import MetricsCsv
from triptych.runs.untrusted import is_own
from triptych.training.follower import Follower, say
from triptych.training.mlflow import MLflow, address
from triptych.training.tensorboard import TensorBoard
from triptych.training.wandb_content import about
from triptych.training.wandb_login import logged_in
from triptych.training.wandb_mirror import Mirror

MODES = ("online", "offline", "disabled")
OLD_NAMES = {"dryrun": "offline", "run": "online"}  # of modes, in WANDB_MODE
KEYS = tuple(Wandb.__annotations__)
RETIRED = ("_target_", "log_model")  # in directories of earlier versions
_mirrors: list[Mirror] = []


def build_loggers(config: dict, provenance: dict, run: RunDirectory, step: int) -> list[Logger]:
    """metrics.csv, then whatever ``logger`` names: ours by their own short forms, others by their target.

    The run goes on from ``step``: rows up to it stand.
    """
    table = MetricsCsv(run / "metrics.csv")
    table.keep_until(step)
    loggers: list[Logger] = [table]
    for name, node in (config["logger"] or {}).items():
        if not node:
            continue
        if name in ("tensorboard", "mlflow"):
            loggers += _following(name, node, config, run, table, step)
        elif name != "wandb":
            loggers.append(build(node, f"logger.{name}", save_dir=str(run.path)))
        elif mirror := _wandb(dict(node), config, provenance, run, table, step):
            loggers.append(mirror)
            _mirrors.append(mirror)
    return loggers


def _following(
    name: str, node: Any, config: dict, run: RunDirectory, table: MetricsCsv, step: int
) -> list[Follower]:
    """TensorBoard or MLflow; [] where a directory that was sent to us would have MLflow write elsewhere."""
    follower: Follower
    if name == "tensorboard":
        follower = TensorBoard(run, table)
    else:
        _check_keys(name, node, tuple(MLflowKeys.__annotations__))
        if (uri := address(node, config, run)) is None:
            return []
        follower = MLflow(run, table, uri, str(node.get("experiment") or "triptych"))
    follower.begin(step)
    return [follower]


def _check_keys(name: str, node: dict, keys: tuple[str, ...]) -> None:
    for key in node:
        if key not in keys:
            raise UserError(f"logger.{name}.{key}={node[key]!r}: no such key, {nearest(key, list(keys))}")


def _wandb(
    node: dict, config: dict, provenance: dict, run: RunDirectory, table: MetricsCsv, step: int
) -> Mirror | None:
    """One W&B run per run directory, the same one when the run goes on: its id is the directory's."""
    _check_keys("wandb", {key: value for key, value in node.items() if key not in RETIRED}, KEYS)
    mode = node.get("mode", "auto")
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE", "")
        asked = OLD_NAMES.get(asked, asked)
        mode = asked if asked in MODES else "online" if logged_in() else "offline"
    if mode == "disabled":
        return None
    own = {k: node[k] for k in ("project", "entity", "notes", "save_code") if node.get(k) is not None}
    own |= about(node, config, provenance, run)
    artifacts = bool(node.get("artifacts"))
    if artifacts and not is_own(run):
        say("W&B: artifacts are left out: a directory asks for them, not a command of yours")
        artifacts = False
    mirror = Mirror(run, table, mode, own, artifacts)
    mirror.begin(step)
    return mirror


def whereabouts(loggers: list[Logger]) -> dict[str, Any]:
    """{"wandb": {"mode", "files", "sync"}}: where W&B's files lie and how to send them; {} without W&B."""
    found = [logger.whereabouts() for logger in loggers if isinstance(logger, Mirror)]
    return {"wandb": found[0]} if found and found[0] else {}


@contextmanager
def closing(loggers: list[Logger]) -> Iterator[None]:
    """Loggers are closed properly, whatever happens."""
    ok = False
    try:
        yield
        ok = True
    finally:
        close_loggers(loggers, ok)


def close_loggers(loggers: list[Logger], ok: bool) -> None:
    """Finish each logger; those that follow the table are told whether the run succeeded."""
    for logger in loggers:
        if isinstance(logger, MetricsCsv):
            logger.flush()
        elif isinstance(logger, Follower):
            logger.close(ok)
        else:
            logger.finalize("success" if ok else "failed")


def leave(code: int = 0) -> None:
    """End the process; without W&B's farewell, a traceback, where it has died before."""
    sys.stdout.flush()
    sys.stderr.flush()
    if any(mirror.lost for mirror in _mirrors):
        os._exit(code)
