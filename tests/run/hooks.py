"""Code that runs in each process of a test's command before its own, or must not run there."""

import os
import textwrap
from pathlib import Path

AFTER = """
import sys
from importlib.abc import MetaPathFinder

class After(MetaPathFinder):
    '''Runs the test's code as soon as the run is about to be executed.'''
    def find_spec(self, name, path=None, target=None):
        if name == "triptych.run.account":
            sys.meta_path.remove(self)
            exec(compile(CODE, "hook", "exec"), {})
        return None

sys.meta_path.insert(0, After())
"""

LOSS = """
import os, signal, time
from triptych.models.diffusion import Diffusion
original, calls = Diffusion.loss, []
def loss(self, batch, step, rank, world):
    calls.append(1)
    if len(calls) == 5:
        ACTION
    return original(self, batch, step, rank, world)
Diffusion.loss = loss
"""


def site(root: Path, code: str) -> dict[str, str]:
    """Return the environment in which each process runs ``code`` when Python starts."""
    folder = root / "hook"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def hook(root: Path, code: str) -> dict[str, str]:
    """Return the environment in which each process that executes a run also runs ``code``."""
    return site(root, f"CODE = {textwrap.dedent(code)!r}\n" + AFTER)


def at_the_fifth_loss(root: Path, action: str) -> dict[str, str]:
    """Return the environment in which each process executes ``action`` in its fifth step.

    The action can use the process's ``rank``.
    """
    return hook(root, LOSS.replace("ACTION", action))


def traps(folder: Path) -> Path:
    """Make a folder of modules with the names of libraries, and return it.

    A module leaves a file in the current folder when it is imported.
    """
    folder.mkdir()
    for name in ("torch", "wandb", "queue", "hydra", "joblib", "random", "sklearn"):
        (folder / f"{name}.py").write_text(
            f"open('imported', 'a').write({name!r})\nraise SystemExit(99)\n"
        )
    return folder
