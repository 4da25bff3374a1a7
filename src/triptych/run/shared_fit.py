"""Runs of a sweep that differ in how they draw alone train the same network: one of them does.

A fit is a function of configuration, code and packages. Once a run of a sweep has ended its fit, one that
would repeat it begins where that ended, with copies of its checkpoints, averages and curves: as if it had
been killed between fit and test, which a run goes on from to the last digit.
"""

import contextlib
import hashlib
import sys

from triptych.callbacks.ema_profiles import SNAPSHOTS
from triptych.config.identity import BUNDLES, leaves, role_in
from triptych.declare import Role
from triptych.errors import UserError
from triptych.files import load_object, open_regular
from triptych.run.checkpoints import read_checkpoint, save_checkpoint
from triptych.run.directory import RunDirectory, to_json, write_atomic
from triptych.run.leakage import log_line
from triptych.run.processes import launch
from triptych.run.provenance import digest_of, source_files, versions
from triptych.run.untrusted import is_composed_here

FITS = ".fits"  # a sweep's folder: for each fit by its digest, which run has made it
FREE = {Role.DRAWING, Role.LABEL, Role.OUTPUT, Role.START}  # keys of these do nothing to a fit


def _digest(run: RunDirectory) -> str:
    """Identify a run's fit: its configuration, but for what follows the fit, and its code."""
    flat = dict(leaves(config := run.config()))
    same = {key: v for key, v in flat.items() if role_in(flat, key) not in FREE and key not in BUNDLES}
    code = [digest_of(source_files(config)), versions(), sys.version]
    return hashlib.blake2b(to_json([sorted(same.items()), code]).encode(), digest_size=16).hexdigest()


def _shares(run: RunDirectory) -> bool:
    sweep = run.path.parent
    if not (sweep / "sweep.json").is_file() or (sweep / FITS).is_symlink():  # which may lead anywhere
        return False
    # of several processes that a launcher started at once, some might see the other run's end and some not
    return is_composed_here(run) and not launch()


def offer_fit(run: RunDirectory) -> None:
    """Record, for later runs of its sweep, that this run's fit has ended."""
    executions = run.provenance().get("executions", [])
    if _shares(run) and not any("changed" in one for one in executions):
        write_atomic(run.path.parent / FITS / _digest(run), to_json({"run": run.path.name}))


def take_fit(run: RunDirectory) -> None:
    """Copy the end of another run's fit, if one of this sweep was the same and this one has not begun."""
    if not _shares(run) or run.checkpoints():
        return
    digest = _digest(run)
    name = str(load_object(run.path.parent / FITS / digest).get("run", ""))
    other = RunDirectory(run.path.parent / name)
    with contextlib.suppress(UserError, OSError):  # damaged, or not there any more: this one trains
        if not name or "/" in name or name == run.path.name or _digest(other) != digest:
            return
        states = {path.name: read_checkpoint(path) for path in other.checkpoints()}
        for path in (other / "metrics.csv", *(other / SNAPSHOTS).glob("*.pt")):
            with open_regular(path) as file:
                write_atomic(run / str(path.relative_to(other.path)), file.read())
        for file_name, state in states.items():  # the last of them last: it tells that all are there
            state["triptych"]["config"] = run.config()
            save_checkpoint(state, run / "checkpoints" / file_name)
        run.write("provenance.json", run.provenance() | {"fit_of": name})
        log_line(run, f"not trained again: {name} trained the same network, and this run goes on with it")
