"""Record the provenance of a run: code, packages, command and machines."""

import contextlib
import functools
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from triptych.config.build import nodes_with_target
from triptych.config.source import module_file, module_paths
from triptych.errors import mask_password
from triptych.records import Config, Entries
from triptych.run.directory import RunDirectory
from triptych.run.provenance_file import ID
from triptych.run.sweep_record import SWEEP, SweepRecord

CLONE = Path(__file__).parents[3]
DIFF_LIMIT = 2**20  # characters of uncommitted changes
# Changes of files that match are not recorded: hidden files, and those with keys or passwords.
SECRET = re.compile(
    r"(^|/)\.|^(?!.*\.py$).*("
    r"\.(pem|key|p12|pfx)$|(^|[/._-])(secret|credential|password|token|api_?key|id_[a-z0-9]+)s?([._-]|$))",
    re.IGNORECASE,
)


def new_provenance(
    run: RunDirectory, overrides: Sequence[str], choices: Mapping[str, Any], config: Config
) -> Entries:
    """Return the provenance of a new run, with the state of user packages that ``config`` names."""
    return {
        "id": _new_run_id(run),
        "overrides": [mask_password(text) for text in overrides],
        "choices": {g: c for g, c in choices.items() if c and not g.startswith("hydra/")},
        "command": SweepRecord.read(run.path.parent).command or command(),
        "started": timestamp(),
        "git": git_state(CLONE, "src", "configs"),
        "own": {name: _package_state(place) for name, place in user_packages(config).items()},
        "packages": _installed_distributions(),
        "executions": [],
    }


def _new_run_id(run: RunDirectory) -> str:
    """Return a run id: that of the W&B agent if it launched this run, else a random one."""
    agent = os.environ.get("WANDB_RUN_ID", "")
    is_cell = (run.path.parent / SWEEP).exists()
    if os.environ.get("WANDB_SWEEP_ID") and ID.fullmatch(agent) and not is_cell:
        return agent
    return secrets.token_hex(4)


def add_missing_id(run: RunDirectory) -> None:
    """If a run has no id, write an id and the other entries that its provenance lacks."""
    if not run.provenance.id:
        run.write_provenance({**new_provenance(run, [], {}, run.config()), **run.provenance.record})


def command() -> list[str]:
    """Return this process's command line without the interpreter, with passwords masked."""
    # sys.argv may differ, as it is rewritten for Hydra.
    words = sys.orig_argv
    programs = [i for i, word in enumerate(words) if i > 0 and not word.startswith("-")]
    program = programs[0] if programs else 0  # 0: the interpreter itself, without arguments
    return [Path(words[program]).name, *map(mask_password, words[program + 1 :])]


def add_execution(
    run: RunDirectory, device: str, world_size: int, step: int, data: Entries
) -> None:
    """Record that the run starts at ``step``, with its machine and ``data``."""
    before = run.provenance.record
    here = {
        "started": timestamp(),
        "step": step,
        "host": socket.gethostname(),
        "device": device,
        "world_size": world_size,
        "python": sys.version.split()[0],
        "commit": git_commit(CLONE),
    }
    executions = [*before.get("executions", []), here]
    run.write_provenance({**before, "data": data, "executions": executions})


def git_commit(root: Path) -> str:
    """Return the commit of the git repository at ``root``; "" if there is no repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return _git(root, "rev-parse", "HEAD")
    return ""


def git_state(root: Path, *code: str) -> Entries:
    """Return {"commit", "dirty", "diff"} of the repository at ``root``.

    Return {} if the first entry of ``code`` is not tracked in a repository. ``code`` are files or
    folders beneath ``root``. "dirty" is also true if they contain new, untracked files. The diff
    has neither new files nor files that may contain secrets.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = _git(root, "rev-parse", "HEAD")
        _git(root, "ls-files", "--error-unmatch", "--", code[0])
        changed = _git(root, "diff", "HEAD", "--name-only", "-z").split("\0")
        hidden = [f":(top,exclude,literal){name}" for name in changed if SECRET.search(name)]
        diff = _git(root, "diff", "HEAD", "--", ":/", *hidden)[:DIFF_LIMIT]
        new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *code)
        return {"commit": commit, "dirty": any(changed) or bool(new), "diff": diff}
    return {}


def _git(root: Path, *arguments: str) -> str:
    """Return the output of a git command at ``root``."""
    line = ["git", "-C", str(root), *arguments]
    # A diff has the bytes of its files, which may not be UTF-8.
    done = subprocess.run(line, capture_output=True, errors="replace", check=True, timeout=10)
    return done.stdout.strip()


@functools.cache  # A sweep prepares many runs in one process.
def _installed_distributions() -> dict[str, str]:
    """Return {name: version} of all installed packages."""
    return {d.metadata["Name"]: d.version for d in distributions()}


def _package_state(path: Path) -> Entries:
    """Return ``git_state`` of a package's folder or file."""
    if path.is_dir():
        return git_state(path, ".")
    return git_state(path.parent, path.name)


def timestamp() -> str:
    """Return the current local time with its offset from UTC, such as 2026-01-31T12:00:00+0100."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def user_packages(config: Config) -> dict[str, Path]:
    """Return {package: folder or file} of packages in ``config`` that are not installed."""
    packages = {}
    for name in sorted(_user_packages_in(config) - {"triptych"}):
        for place in _package_paths(name)[:1]:
            if not {"site-packages", "dist-packages"} & {*place.parts}:
                packages[name] = place
    return packages


def _package_paths(package: str) -> list[Path]:
    """Return the folders of a package or the file of a module; [] if it cannot be imported."""
    file = module_file(package)
    return module_paths(package) or ([file] if file else [])


def _user_packages_in(config: Config) -> set[str]:
    """Return the top-level packages of all classes that ``config`` names."""
    return {str(node["_target_"]).partition(".")[0] for _, node in nodes_with_target(config, "")}
