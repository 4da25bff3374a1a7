"""Plan, check and reserve the cells of a sweep before a command writes to them.

Commands may share a sweep's directory unless two of them want different settings in one cell. A
reservation ends when its process ends, even if the process is killed.
"""

import secrets
import shutil
from collections import ChainMap
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from omegaconf import DictConfig

from triptych.config.identity import Changes, describe_differences, differences
from triptych.errors import Busy, UserError, mask_password
from triptych.files import SWEEP_FILES, holds_run_records, load_object
from triptych.run.directory import RunDirectory, write_atomic
from triptych.run.prepare import (
    CHOOSE_NAME,
    PATIENCE,
    START_OVER,
    RunPlan,
    contains_run,
    plan_run,
    without_machine_settings,
)
from triptych.run.provenance_file import Entries
from triptych.run.read import find_runs
from triptych.run.request import resolve
from triptych.run.sweep_record import SWEEP, Tuning
from triptych.study.rounds import Composer, is_grid, override_key

COMMANDS = ".commands"  # folder in which each running command lists its cells
CELLS = "cells.json"
FIX = f"{CHOOSE_NAME}, {START_OVER}"
STUDY = "study.db"  # a search reserves it like a cell, so that only one search runs
# Files that a sweep writes. They must not be links, which could lead out of its directory.
FILES = (STUDY, *SWEEP_FILES)
Cells = dict[str, Sequence[str]]  # overrides of each cell
Others = Sequence[tuple[str, Cells]]


def check_own_files(root: Path) -> None:
    """Raise UserError if the sweep would write in a run, or over what no sweep has written.

    That is a link, a directory, or a file in a directory without a sweep.
    """
    if holds_run_records(root):
        raise UserError(f"hydra.sweep.dir={root}: a run's directory; choose another place")
    for path in map(root.joinpath, (COMMANDS, *FILES)):
        if path.is_symlink() or (path.is_dir() and path.name != COMMANDS):
            raise UserError(
                f"{path}: symbolic link or directory where the sweep writes a file; move it away"
            )
    if (root / SWEEP).exists() or not root.is_dir():
        return
    runs = find_runs(root)
    if any(run.parent != root for run in runs):
        raise UserError(f"hydra.sweep.dir={root}: holds other runs or sweeps; choose another place")
    if runs:
        return
    for path in map(root.joinpath, FILES):
        if path.exists():
            raise UserError(
                f"{path}: not written by a sweep, which would replace it; move it away, or "
                "choose another name"
            )


class RecordBackup:
    """A copy of a sweep's records before a command, restored if the command starts no run."""

    def __init__(self, root: Path):
        self.root = root
        self.directories = _directory_times(root)
        self.contents = {
            path: _read_if_present(path) for path in map(root.joinpath, (*FILES, SWEEP))
        }

    @property
    def no_run_changed(self) -> bool:
        """Whether no run has been started or moved aside since the backup."""
        return _directory_times(self.root) == self.directories

    def restore(self) -> None:
        """Write the saved records back, and remove those that did not exist before."""
        for path, content in self.contents.items():
            if content is None:
                path.unlink(missing_ok=True)
            elif _read_if_present(path) != content:
                write_atomic(path, content)


def _read_if_present(path: Path) -> bytes | None:
    """Return a file's content; None if there is no such file."""
    if not path.is_file():
        return None
    return path.read_bytes()


def _directory_times(root: Path) -> dict[str, int]:
    """Return the modification time of each directory in a sweep, by its name."""
    return {path.name: path.stat().st_mtime_ns for path in root.glob("[!.]*") if path.is_dir()}


def plan_cells(config: DictConfig, root: Path, cells: Cells) -> dict[str, RunPlan]:
    """Plan the cells whose directories already hold a run; other cells need no plan."""
    plans, composer = {}, Composer(config)
    for name, job in cells.items():
        run = RunDirectory(root / name)
        if run.path.is_symlink() or run.path.is_file():
            raise UserError(
                f"{run.path}: symbolic link or file where the sweep needs a run's directory; "
                "move it away"
            )
        if not contains_run(run):
            continue
        # Also with force: a refused cell ends the command before an earlier run is moved aside.
        request = resolve(composer.compose(job), run.path)
        if not config.force:
            plans[name] = plan_run(request)
    refuse_differences(
        root,
        [plan.conflicts for plan in plans.values()],
        "{} of its runs exist with other settings",
    )
    return plans


def check_other_commands(
    config: DictConfig, root: Path, cells: Cells, other_processes: Others
) -> None:
    """Raise an error if another running command has one of these cells and they conflict.

    ``other_processes``: (process, its cells) of each such command. UserError: it runs a cell with
    other settings. Busy: this command must wait, as with force or in a search.
    """
    for process, theirs in other_processes:
        shared = cells.keys() & theirs.keys()
        if shared and (config.force or not is_grid(config)):
            raise Busy(f"{root}: {process} is running this sweep; wait for it, or {CHOOSE_NAME}")
        differing = []
        for name in shared:
            changes = differences(_override_values(theirs[name]), _override_values(cells[name]))
            differing.append(without_machine_settings(changes))
        refuse_differences(
            root,
            differing,
            f"{process} is running {{}} of its runs with other settings",
            CHOOSE_NAME,
        )


def _override_values(job: Sequence[str]) -> dict[str, str]:
    """Return {key: value} of a job's overrides, with passwords masked."""
    return {override_key(override): mask_password(override.partition("=")[2]) for override in job}


def refuse_differences(
    root: Path, differing: Sequence[Changes], problem: str, fix: str = FIX
) -> None:
    """Raise one UserError for the whole sweep if any cell has different settings.

    ``differing``: the differences of each cell. ``problem``: a text with {} for the number of
    cells that have any.
    """
    refused = [changes for changes in differing if changes]
    if refused:
        changes = describe_differences(dict(ChainMap(*refused)))
        raise UserError(f"{root}: {problem.format(len(refused))} ({changes}); {fix}")


def check_tuning(config: DictConfig, root: Path, earlier: Tuning, planned: Entries) -> None:
    """Raise UserError if the sweep was tuned before with other settings.

    Its earlier runs would disappear from the report. ``planned``: this command's
    ``Tuning.plan_entries``; {} if it does not tune.
    """
    if earlier.best and not config.force:
        changes = differences(earlier.plan_entries(list(earlier.best)), dict(planned))
        refuse_differences(root, [changes], "was tuned with other settings")


class Reservation:
    """The cells that this command will run; other commands read them while its process lives."""

    def __init__(self, root: Path):
        self.root = root
        self.command = RunDirectory(root / COMMANDS / secrets.token_hex(4))
        self.cells: Cells = {}
        self._stack = ExitStack()

    def others(self) -> list[tuple[str, Cells]]:
        """Return the processes of other commands at work in this sweep, with their cells."""
        others = []
        for path in (self.root / COMMANDS).glob("*"):
            holder = RunDirectory(path).holder()
            if holder and path != self.command.path:
                others.append((holder, load_object(path / CELLS)))
        return others

    def reserve(self, config: DictConfig, cells: Cells) -> None:
        """Reserve these cells in addition to ``self.cells``; raise as ``check_other_commands``."""
        with RunDirectory(self.root).lock(PATIENCE):
            check_other_commands(config, self.root, cells, self.others())
            if not self.command.path.exists():
                self._stack.enter_context(self.command.lock())
            self.cells |= cells
            masked = {name: [*map(mask_password, job)] for name, job in self.cells.items()}
            self.command.write(CELLS, masked)

    def release(self) -> None:
        """End the reservation."""
        self._stack.close()
        shutil.rmtree(self.command.path, ignore_errors=True)
        with suppress(OSError):
            self.command.path.parent.rmdir()  # succeeds only if no other command is left
