"""Runs of a sweep that differ in how they draw alone train the same network: one of them does.

A fit is a function of configuration, data, code and packages. A later run that would repeat it begins where
it ended, as if it had been killed between fit and test: the same to the last digit.
"""

import contextlib
import hashlib
import math
import sys
from pathlib import Path
from typing import Any

from triptych.callbacks.ema_profiles import SNAPSHOTS
from triptych.config.identity import BUNDLES, leaves, role_in
from triptych.data.fingerprint import Fingerprint
from triptych.declare import Role
from triptych.errors import UserError
from triptych.files import check_directory, load_object, open_regular
from triptych.run.checkpoints import BEST, LAST, read_checkpoint, save_checkpoint
from triptych.run.directory import RunDirectory, to_json, write_atomic
from triptych.run.leakage import log_line
from triptych.run.parsing import to_float
from triptych.run.processes import launch
from triptych.run.provenance import digest_of, source_files, versions
from triptych.run.untrusted import is_composed_here

FITS = ".fits"  # a sweep's folder: for each fit by its digest, which run has made it
FREE = {Role.DRAWING, Role.LABEL, Role.OUTPUT, Role.START}  # keys of these do nothing to a fit
OTHERS = ("trained", "init_from", "objective.teacher", "model.stages")  # runs, which may change meanwhile


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    flat = dict(leaves(config))
    return {k: v for k, v in flat.items() if role_in(flat, k) not in FREE and k not in BUNDLES}


def fit_digest(run: RunDirectory, data: Fingerprint) -> str:
    """Identify the fit that ``run`` is about to make, for others of its sweep; "" if it is for none."""
    sweep, config = run.path.parent, run.config()
    # of several processes that a launcher started at once, some might see another run's end and some not
    if not is_composed_here(run) or not (sweep / "sweep.json").is_file() or launch():
        return ""
    settings = _settings(config)
    others = tuple(f"{key}." for key in OTHERS)
    if any(value and f"{key}.".startswith(others) for key, value in settings.items()):
        return ""
    if (sweep / FITS).is_symlink():  # which may lead anywhere
        return ""
    code = [digest_of(source_files(config)), versions(), sys.version]
    fit = to_json([sorted(settings.items()), data.data, data.split, code])
    return hashlib.blake2b(fit.encode(), digest_size=16).hexdigest()


def offer_fit(run: RunDirectory, digest: str, memory: float) -> None:
    """Record, for later runs of its sweep, that this run's fit has ended, and what memory it took."""
    if digest and not any("changed" in one for one in run.provenance().get("executions", [])):
        with contextlib.suppress(OSError, UserError):  # then they train themselves
            entry = to_json({"run": run.path.name, "id": run.provenance().get("id"), "memory": memory})
            write_atomic(run.path.parent / FITS / digest, entry)


def take_fit(run: RunDirectory, digest: str) -> None:
    """Copy the end of another run's fit, if one of this sweep was the same and this one has not begun."""
    if not digest or run.checkpoints():
        return
    entry = load_object(run.path.parent / FITS / digest)
    name, memory = str(entry.get("run", "")), to_float(entry.get("memory"))  # bytes
    other = RunDirectory(run.path.parent / name)
    # damaged, of a stranger or not there any more: then this one trains
    with contextlib.suppress(UserError, OSError, ValueError):
        if not name or Path(name).name != name or name in ("..", run.path.name) or other.path.is_symlink():
            return
        check_directory(other.path)
        if other.provenance().get("id") != entry.get("id"):  # begun anew since, by force=true
            return
        states = {path.name: read_checkpoint(path) for path in other.checkpoints()}
        needed = {LAST, BEST} if run.config()["checkpoint"] == "best" else {LAST}
        if not needed <= {*states} or _settings(other.config()) != _settings(run.config()):
            return
        states[LAST]["triptych"]["fit_of"] = {"run": name, "memory": memory if math.isfinite(memory) else 0.0}
        for path in (other / "metrics.csv", *(other / SNAPSHOTS).glob("*.pt")):
            with open_regular(path) as file:
                write_atomic(run / str(path.relative_to(other.path)), file.read())
        for file_name, state in sorted(states.items()):  # LAST last: it tells that all are there
            state["triptych"]["config"] = run.config()
            save_checkpoint(state, run / "checkpoints" / file_name)
        log_line(run, f"not trained again: {name} trained the same network, and this run goes on with it")
