"""Checkpoints and run directories that may be a stranger's, looked at before anything of theirs is used.

Nothing here imports torch, so what is refused is refused at once. docs/security.md says what is promised.
"""

import os
from pathlib import Path
from typing import Any

from triptych.config.build import check_names
from triptych.config.keys import check_values, groups, of_model
from triptych.config.plain import count, group
from triptych.errors import UserError
from triptych.runs.archive import inspect
from triptych.runs.directory import NO_CHECKPOINT, RunDirectory, checkpoint_at
from triptych.runs.provenance import ID

OWN = "TRIPTYCH_OWN"  # the run directory whose configuration this user's own command has just composed
THREADS = 1024


def check_config(config: Any, what: str, needed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A plain configuration from a file: its groups are there, and name nothing but what may be built.

    Raises:
        UserError: in one line that begins with ``what`` or with the key.
    """
    group(config, what, *(needed or (key for key in groups() if key in of_model())))
    for name in ("data", "model"):
        if "_target_" not in config[name]:
            raise UserError(f"{what}: {name} names no class; the configuration of a run is accepted")
    check_names(config)
    check_values(config)
    count(config.get("threads"), "threads", THREADS)
    return config


def check_checkpoint(ckpt: str, key: str = "ckpt") -> None:
    """A checkpoint, or a run's directory, as far as it can be judged without loading it; ``key`` names it.

    Raises:
        UserError: in one line, where it is refused.
    """
    path = checkpoint_at(ckpt)
    if not path.is_file():
        raise UserError(f"{key}={path}: {NO_CHECKPOINT}")
    with open(path, "rb") as file:
        check_config(inspect(file, path)["triptych"]["config"], f"{key}={path}")


def check_run(run: RunDirectory) -> None:
    """A directory in which a run is to go on, unless this user's own command has just composed it.

    Raises:
        UserError: no run's; a configuration that names what may not be built; a link that leads out of it,
            through which a run would write where it should not.
    """
    config = run.config()
    if is_own(run):
        return
    check_config(config, str(run / "config.yaml"), groups())
    home = run.path.resolve()
    for folder, inner, files in os.walk(run.path):
        for name in (*inner, *files):
            file = Path(folder, name)
            if file.is_symlink() and not file.resolve().is_relative_to(home):
                raise UserError(f"{file}: a link that leads out of the run's directory; files are accepted")
    if not ID.fullmatch(str(run.provenance().get("id", "x"))):
        raise UserError(f"{run / 'provenance.json'}: its id is none; letters, digits, - and _ are accepted")


def is_own(run: RunDirectory) -> bool:
    """Whether the configuration in ``run`` is this user's own, composed by the command that started this."""
    return os.environ.get(OWN) == str(run.path)
