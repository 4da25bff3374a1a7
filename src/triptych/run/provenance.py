"""Record the provenance of a run: code, packages, command and machines."""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from triptych.config.build import targets
from triptych.config.own_code import IMPORTED, digest_file
from triptych.config.source import file_of, places
from triptych.errors import UserError, mask_password
from triptych.run.directory import RunDirectory
from triptych.run.parsing import few
from triptych.run.provenance_file import ID, Execution
from triptych.run.sweep_record import SWEEP, SweepRecord

DIFF_LIMIT = 2**20
BY_VERSION = ("torch", "pytorch_lightning")  # their versions say it
# names of files that are not recorded: hidden ones, and those of keys and passwords
SECRET = re.compile(
    r"(^|/)\.|^(?!.*\.py$).*("
    r"\.(pem|key|p12|pfx)$|(^|[/._-])(secret|credential|password|token|api_?key|id_[a-z0-9]+)s?([._-]|$))",
    re.IGNORECASE,
)


def provenance(
    run: RunDirectory, overrides: list[str], choices: dict[str, Any], config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the provenance of a new run, with the origin of the user's own packages in ``config``."""
    sweep = SweepRecord.read(run.path.parent)
    is_cell = (run.path.parent / SWEEP).exists()
    agent = os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""
    own = {name: _package_state(place) for name, place in own_packages(config or {}).items()}
    return {
        "id": agent if ID.fullmatch(agent) and not is_cell else secrets.token_hex(4),
        "overrides": [mask_password(text) for text in overrides],
        "choices": {g: c for g, c in choices.items() if c and not g.startswith("hydra/")},
        "command": sweep.command or command(),
        "started": timestamp(),
        "git": git_state(),
        **({"own": own} if own else {}),
        "packages": _installed(),
        "executions": [],
    }


def add_missing_id(run: RunDirectory) -> None:
    """Write a new provenance for a run that has lost its own, and with it the id by which loggers know it."""
    if not run.provenance.id:
        run.write_provenance({**provenance(run, [], {}, run.config()), **run.provenance.record})


def command() -> list[str]:
    """Return this process's command line from its program on, passwords masked."""
    # not sys.argv: a command has there what Hydra reads, which may be more arguments or fewer
    words = sys.orig_argv
    program = next((i for i, word in enumerate(words) if i and not word.startswith("-")), 0)
    return [Path(words[program]).name, *map(mask_password, words[program + 1 :])]


def add_execution(
    run: RunDirectory, device: str, world_size: int, step: int, config: dict[str, Any], data: dict[str, Any]
) -> str:
    """Record an execution on ``data`` that begins at ``step``; return a warning if its code has changed."""
    before = run.provenance
    here: dict[str, Any] = {
        "started": timestamp(),
        "step": step,
        "host": socket.gethostname(),
        "device": device,
        "world_size": world_size,
        "python": sys.version.split()[0],
        "commit": git_state(diff=False).get("commit", ""),
        "sources": code_digest(config),
        "versions": versions(),
        "data": {key: data[key] for key in ("fingerprint", "split")},
    }
    # under what it made no step, nothing was trained
    code = Execution(sources=here["sources"], versions=here["versions"])
    changes = describe_changes(before.last, code) if step else ""
    line = f"going on under other {changes} than before" if changes else ""
    here |= {"changed": line} if line else {}
    executions = [*before.record.get("executions", []), here]
    run.write_provenance({**before.record, "data": data, "executions": executions})
    return line


def check_imported(config: dict[str, Any]) -> None:
    """Refuse a package in ``config`` of which a file is no longer what this process has imported."""
    named = _named(config)
    for name, (spec, digest) in IMPORTED.items():
        live = getattr(sys.modules.get(name), "__spec__", None) is spec and name.partition(".")[0] in named
        if live and digest_file(spec.origin) != digest:
            raise UserError(f"{spec.origin}: has changed since it was imported; restart Python")


def finished_before(*runs: RunDirectory) -> str:
    """Return the line of finished runs whose code has changed, "2 runs ..." of several; "" for none."""
    changes: list[str] = []
    for run in runs:
        with contextlib.suppress(UserError, ValueError):  # one that cannot be read says so itself
            here = Execution(sources=code_digest(run.config()), versions=versions())
            changes += filter(None, [describe_changes(run.provenance.last, here)])
    if not changes:
        return ""
    count = f"{len(changes)} runs " if len(changes) > 1 else ""
    anew = "runs them anew, the old directories are" if count else "runs it anew, the old directory is"
    several = few([*dict.fromkeys(changes)])
    return f"{count}finished before, under other {several} than now; force=true {anew} kept aside"


def git_state(
    diff: bool = True, root: Path | None = None, below: tuple[str, ...] = (":/src", ":/configs")
) -> dict[str, Any]:
    """Return the commit of the repository at ``root`` and, with ``diff``, its uncommitted changes; or {}.

    {"commit", "dirty", "diff", "untracked": {file under ``below``: text}, "left_out": names}: links, hidden
    files and those named after keys or passwords.
    """
    root = root or Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = {"commit": git("rev-parse", "HEAD")}
        if not diff:
            return commit
        changed = [name for name in git("diff", "HEAD", "--name-only", "-z").split("\0") if name]
        left_out = [name for name in changed if SECRET.search(name)]
        changes = git("diff", "HEAD", "--", ":/", *(f":(top,exclude,literal){name}" for name in left_out))
        top = Path(git("rev-parse", "--show-toplevel"))
        names = git("ls-files", "-z", "--others", "--exclude-standard", "--full-name", *below)
        files = {n: top / n for n in names.split("\0") if (top / n).is_file() and not (top / n).is_symlink()}
        left_out += [name for name in files if SECRET.search(name)]
        files = {name: file for name, file in files.items() if name not in left_out}
        new = {name: file.read_text(errors="replace")[:DIFF_LIMIT] for name, file in files.items()}
        state = {"dirty": bool(changes or new or left_out), "diff": changes[:DIFF_LIMIT], "untracked": new}
        return commit | state | ({"left_out": left_out} if left_out else {})
    return {}


@functools.cache  # a sweep prepares all its runs in few processes
def _installed() -> dict[str, str]:
    return {d.metadata["Name"]: d.version for d in distributions()}


def _package_state(place: Path) -> dict[str, Any]:
    """Return ``git_state`` of a package's folder or file; its source text if it is in no repository."""
    root, below = (place, ".") if place.is_dir() else (place.parent, place.name)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        tracked = ["git", "-C", str(root), "ls-files", "--error-unmatch", below]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        return git_state(root=root, below=(below,))
    left, texts = DIFF_LIMIT, {}
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.suffix in (".py", ".yaml"):
            texts[file.relative_to(place.parent).as_posix()] = text = file.read_text(errors="replace")[:left]
            left -= len(text)
    return {"untracked": texts}


def timestamp() -> str:
    """Return the local time now, with its offset from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# the code that a process runs: digests of its source files, versions of the packages that it needs


def code_digest(config: dict[str, Any]) -> str:
    """Digest all Python sources of triptych and of the packages that ``config`` uses."""
    digest = hashlib.blake2b(digest_size=8)
    for package in sorted({"triptych", *_named(config)} - {*BY_VERSION}):
        for place in _places(package):
            files = sorted(place.rglob("[!.]*.py")) if place.is_dir() else [place]  # no editor's hidden ones
            for file in files:
                digest.update(f"{package} {file.relative_to(place.parent)} {digest_file(file)}\n".encode())
    return digest.hexdigest()


def own_packages(config: dict[str, Any]) -> dict[str, Path]:
    """Return {package: folder or file} of the packages that ``config`` uses and that are not installed."""
    packages = {}
    for name in sorted(_named(config) - {"triptych", *BY_VERSION}):
        for place in _places(name)[:1]:
            if not {"site-packages", "dist-packages"} & {*place.parts}:
                packages[name] = place
    return packages


def _places(package: str) -> list[Path]:
    return places(package) or [*filter(None, [file_of(package)])]


def _named(config: dict[str, Any]) -> set[str]:
    return {str(node["_target_"]).partition(".")[0] for _, node in targets(config, "")}


@functools.cache  # those that this process imports
def versions() -> dict[str, str]:
    """Return {package: version} of all direct and indirect dependencies."""
    known: dict[str, str] = {}
    ahead = ["triptych"]
    for name in ahead:
        with contextlib.suppress(PackageNotFoundError):
            package = distribution(name)
            known[name] = package.version
            needed = (re.match(r"[\w.-]+", line) for line in package.requires or [] if "extra ==" not in line)
            names = {re.sub(r"[-_.]+", "-", match[0]).lower() for match in needed if match}
            ahead += names.difference(ahead)
    return {name: version for name, version in sorted(known.items()) if name != "triptych"}


def describe_changes(before: Execution, here: Execution) -> str:
    """Describe changes between two executions: "code and packages (NAME OLD -> NEW)", or ""."""
    parts = []
    if before.sources and before.sources != here.sources:
        parts.append("code")
    old, new = before.versions, here.versions
    if old and old != new:
        moved = sorted(n for n in {**old, **new} if old.get(n) != new.get(n))
        names = few([f"{n} {old.get(n, 'none')} -> {new.get(n, 'none')}" for n in moved])
        parts.append(f"packages ({names})")
    return " and ".join(parts)
