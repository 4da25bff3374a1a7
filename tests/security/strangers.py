"""What an attacker could send: a checkpoint, a run's directory, hostile configurations."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml

from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.run.directory import SCHEMA

TINY = (
    "logger=csv threads=1 trainer.accelerator=cpu trainer.max_steps=2 trainer.val_check_interval=1 "
    "bound.repeats=1 bound.val_repeats=1 samples.n=0 sampler.steps=2 callbacks.ema=null weights=raw"
).split()
RING = (
    "data=ring denoiser=mlp denoiser.network.width=8 data.train_size=64 data.val_size=16 "
    "data.test_size=16"
).split()


def configuration(*overrides: str, data: list[str] = RING) -> dict:
    """Return a run's configuration, as its command records it."""
    plain = to_plain(without_hydra(compose_command("train", [*TINY, *data, *overrides])))
    for key in ("force", "retry"):
        plain.pop(key, None)
    return plain


class Opener:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def attacks(folder: Path) -> dict[str, dict]:
    """Return nodes that would leave a mark in ``folder`` if they were built."""
    (folder / "load.pkl").write_bytes(pickle.dumps(Opener(folder / "mark-pickle")))
    command, target = ["/bin/sh", "-c", f"touch {folder}/mark-command"], "triptych.run.directory"
    return {
        "command": {"_target_": "triptych.cli.startup.replace_process", "command": command},
        "file": {
            "_target_": f"{target}.write_atomic",
            "path": {"_target_": f"{target}.Path", "_args_": [f"{folder}/mark-file"]},
            "data": "owned",
        },
        "pickle": {
            "_target_": "triptych.run.checkpoints.torch.load",
            "f": f"{folder}/load.pkl",
            "weights_only": False,
        },
    }


def marks(folder: Path) -> list[str]:
    """Return the marks that attacks have left."""
    return sorted(path.name for path in folder.glob("mark*"))


def put(config: dict, place: str, node: Any) -> dict:
    """Return a copy of ``config`` with ``node`` at a dotted place."""
    changed = copy.deepcopy(config)
    *parents, name = place.split(".")
    inner = changed
    for parent in parents:
        inner = inner[parent]
    inner[name] = node
    return changed


def save_checkpoint(path: Path, config: Any, state: dict | None = None) -> Path:
    """Save a checkpoint like a run's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"epoch": 0, "global_step": 2, "state_dict": state or {}, "callbacks": {}}
    torch.save(content | {"triptych": {"schema": SCHEMA, "config": config}}, path)
    return path


def save_run(folder: Path, config: dict, status: str = "") -> Path:
    """Make a run's directory; with a status, that of a run that has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    record = {"id": "abcd1234", "overrides": [], "choices": {}, "executions": []}
    (folder / "provenance.json").write_text(json.dumps(record))
    if status:
        (folder / "summary.json").write_text(json.dumps({"schema": 1, "status": status}))
    return folder
