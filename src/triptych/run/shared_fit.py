"""Share one fit among the runs of a sweep that would train the same network.

A fit is a function of configuration, data, code and packages. A later run that would repeat it
copies its checkpoints and continues with the evaluation, as a run does that was killed after the
fit. The result is the same to the last digit.
"""

import contextlib
import hashlib
import math
import sys
from pathlib import Path

from triptych.callbacks.ema import SNAPSHOTS
from triptych.config.identity import BUNDLES, flatten_config, role_in
from triptych.data.build import Fingerprint
from triptych.declare import Role
from triptych.errors import UserError
from triptych.files import check_directory, load_object, open_regular
from triptych.records import Config, Entries
from triptych.run.checkpoints import save_checkpoint
from triptych.run.directory import BEST, LAST, RunDirectory, log_line, to_json, write_atomic
from triptych.run.parsing import to_float
from triptych.run.processes import launch_id, rank
from triptych.run.untrusted import is_composed_here, read_checkpoint

FITS_FOLDER = ".fits"  # in a sweep's directory; its file DIGEST names the run that made this fit
# Roles of keys that do not affect a fit.
ROLES_WITHOUT_EFFECT = {Role.DRAWING, Role.LABEL, Role.OUTPUT, Role.START}
# Keys that name other runs. Such fits are not shared, as those runs may change.
OTHER_RUNS = ("trained.", "init_from.", "objective.teacher.", "model.stages.")


def fit_digest(run: RunDirectory, data: Fingerprint) -> str:
    """Return a digest of all that determines a run's fit; "" if the fit cannot be shared.

    Runs of one sweep with equal digests would train the same network.
    """
    sweep, config = run.path.parent, run.config()
    # With torchrun or srun, not all ranks might see that another run has ended.
    if launch_id() or not is_composed_here(run) or not (sweep / "sweep.json").is_file():
        return ""
    if (sweep / FITS_FOLDER).is_symlink():  # Do not follow a link out of the sweep.
        return ""
    settings = _fit_settings(config)
    for key, value in settings.items():
        if value and f"{key}.".startswith(OTHER_RUNS):
            return ""
    code = run.provenance.code
    fit = to_json([sorted(settings.items()), data.data, data.split, code, sys.version])
    return hashlib.blake2b(fit.encode(), digest_size=16).hexdigest()


def offer_fit(run: RunDirectory, digest: str, memory: float) -> None:
    """Record that later runs of the sweep may copy this fit, with its peak memory in bytes."""
    if rank() != 0 or not digest:
        return
    with contextlib.suppress(OSError, UserError):  # On failure the other runs simply train.
        entry = to_json({"run": run.path.name, "id": run.provenance.id, "memory": memory})
        write_atomic(run.path.parent / FITS_FOLDER / digest, entry)


def take_fit(run: RunDirectory, digest: str) -> None:
    """Copy the fit with this digest from another run of the sweep, if one has recorded it.

    A run with a checkpoint copies nothing. If the fit is missing, damaged or untrusted, this run
    trains as usual.
    """
    if rank() != 0 or not digest or run.checkpoints():
        return
    entry = load_object(run.path.parent / FITS_FOLDER / digest)
    with contextlib.suppress(UserError, OSError, ValueError):
        other = _offering_run(run, entry)
        if other is not None:
            _copy_fit(run, other, to_float(entry.get("memory")))


def _offering_run(run: RunDirectory, entry: Entries) -> RunDirectory | None:
    """Return the run that the ``entry`` of a fit names; None if the run has been replaced."""
    name = str(entry.get("run", ""))
    if name in ("", "..", run.path.name) or Path(name).name != name:
        return None
    other = RunDirectory(run.path.parent / name)
    if other.path.is_symlink():
        return None
    check_directory(other.path)
    if other.provenance.id != entry.get("id") or _fit_settings(other.config()) != _fit_settings(
        run.config()
    ):
        return None
    return other


def _copy_fit(run: RunDirectory, other: RunDirectory, memory: float) -> None:
    """Copy checkpoints, snapshots and metrics.csv of the run ``other``."""
    states = {path.name: read_checkpoint(path) for path in other.checkpoints()}
    needed = {LAST}
    if run.config()["checkpoint"] == "best":
        needed.add(BEST)
    if not needed <= states.keys():
        return
    name = other.path.name
    if math.isnan(memory):
        memory = 0.0
    states[LAST]["triptych"]["fit_of"] = {"run": name, "memory": memory}
    for path in (other / "metrics.csv", *(other / SNAPSHOTS).glob("*.pt")):
        with open_regular(path) as file:
            write_atomic(run / str(path.relative_to(other.path)), file.read())
    for file_name, state in sorted(states.items()):  # LAST is written last, and marks completion.
        state["triptych"]["config"] = run.config()
        save_checkpoint(state, run / "checkpoints" / file_name)
    log_line(run, f"training skipped: copied the fit of {name}, which trained the same network")


def _fit_settings(config: Config) -> Entries:
    """Return those settings that may change a fit, {dotted key: value}."""
    flat = dict(flatten_config(config))
    return {
        k: v
        for k, v in flat.items()
        if role_in(flat, k) not in ROLES_WITHOUT_EFFECT and k not in BUNDLES
    }
