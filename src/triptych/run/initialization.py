"""Initialise a run: from scratch, its own checkpoint, or another run (``init_from``, ``trained``).

Runs of a sweep that differ in how they draw alone train the same network: one of them does. A fit is a
function of configuration, data, code and packages. A later run that would repeat it begins where it ended,
as if it had been killed between fit and test: the same to the last digit.

Detect train/test leakage and changed data between two starts.
"""

import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.callbacks.ema import SNAPSHOTS
from triptych.config.identity import BUNDLES, leaves, role_in
from triptych.data.base import DataModule
from triptych.data.build import HELD_OUT, Fingerprint, fingerprint
from triptych.declare import Role
from triptych.errors import UserError
from triptych.files import check_directory, load_object, open_regular
from triptych.models.base import BoundModel
from triptych.run.checkpoints import average_of, newest_readable, reported, save_checkpoint
from triptych.run.directory import BEST, LAST, RunDirectory, checkpoint_at, log_line, to_json, write_atomic
from triptych.run.parsing import to_float
from triptych.run.pipeline import is_pipeline, read_pipeline
from triptych.run.processes import launch, rank
from triptych.run.provenance import code_digest, few, versions
from triptych.run.untrusted import interpreting, is_composed_here, read_checkpoint

FITS = ".fits"  # a sweep's folder: for each fit by its digest, which run has made it
FREE = {Role.DRAWING, Role.LABEL, Role.OUTPUT, Role.START}  # keys of these do nothing to a fit
OWN = ("schedule.", "loss_module.")  # of a run's objective, whatever it begins with
OTHERS = ("trained", "init_from", "objective.teacher", "model.stages")  # runs, which may change meanwhile


@dataclass(frozen=True)
class Origin:
    """The state that a run starts from."""

    start: Path | None  # the checkpoint to go on from
    step: int  # at which it was taken
    adopted: dict[str, Any] | None  # with ``trained``, the other run's checkpoint
    initial: dict[str, Any] | None  # at a first start with ``init_from``, the other run's checkpoint
    data: dict[str, Any]  # what checkpoints keep of the data, with every item that the model is trained on
    fit: str = ""  # a digest of what is about to be fitted, for other runs of its sweep

    @property
    def facts(self) -> dict[str, Any]:
        return {key: value for key, value in self.data.items() if key != "items"}


def find_origin(run: RunDirectory, config: dict[str, Any], data: DataModule, model: BoundModel) -> Origin:
    """Find what ``run`` starts from; UserError if it was trained on what would now judge it."""
    now = fingerprint(data)
    fit = fit_digest(run, now)
    if rank() == 0:
        take_fit(run, fit)
    start = newest_readable(run.checkpoints())
    checkpoint = read_checkpoint(start) if start else None
    with interpreting(start or config.get("trained") or config.get("init_from")):
        return _origin_of(run, config, now, model, fit, start, checkpoint)


def _origin_of(
    run: RunDirectory,
    config: dict[str, Any],
    now: Fingerprint,
    model: BoundModel,
    fit: str,
    start: Path | None,
    checkpoint: dict[str, Any] | None,
) -> Origin:
    if start is not None and start.name != LAST and rank() == 0:
        write_atomic(start.with_name(LAST), start.read_bytes())  # it is the last that counts
    if checkpoint and (other := checkpoint["triptych"].get("fit_of")):
        fit = ""  # the other run has offered it
        if rank() == 0:
            run.write_provenance({**run.provenance.record, "fit_of": other})
    adopted = initial = None
    if path := config.get("trained"):
        if is_pipeline(path):
            theirs = read_pipeline(path, model)
            line = f"trained={path}: unknown training data; leakage cannot be detected"
        else:
            theirs, line = read_other("trained", path, now, f"restore the data of trained={path}")
        log_line(run, line)
        adopted = {key: theirs[key] for key in ("state_dict", "callbacks", "global_step")}
        adopted["triptych"] = theirs["triptych"] | {"config": config}
    seen = checkpoint["triptych"].get("data") if checkpoint else None
    line = compare_data(now, seen, HELD_OUT, "restore the data, or pass force=true to start over")
    before = run.provenance.fingerprint
    if checkpoint is None and before and before != now.data:
        line = "data: changed since this run was first started; no step of it was kept, so none is mixed"
    log_line(run, line)
    seen = remember(now, seen)
    if adopted is not None:
        seen = remember(now, adopted["triptych"].get("data"))
    if start is None and (path := config.get("init_from")):
        fix = f"init_from={path} must have seen no item of validation or test"
        initial, _ = read_other("init_from", path, now, fix)
        # it was trained on theirs, too
        seen |= {"items": remember(now, initial["triptych"].get("data"))["items"]}
    fit = "" if seen["changed"] else fit  # begun with other data
    return Origin(start, checkpoint["global_step"] if checkpoint else 0, adopted, initial, seen, fit)


def read_other(key: str, path: str, now: Fingerprint, fix: str) -> tuple[dict[str, Any], str]:
    """Read the checkpoint that ``key`` names, and a warning if its data differ from ``now``."""
    file = checkpoint_at(path)
    checkpoint = read_checkpoint(file, key)
    return checkpoint, compare_data(now, checkpoint["triptych"].get("data"), HELD_OUT, fix)


def initialise(
    run: RunDirectory, config: dict[str, Any], model: nn.Module, checkpoint: dict[str, Any]
) -> None:
    """Copy the other run's reported weights into ``model`` where name and shape match, and record which.

    Parameters but those of a learned schedule or loss, and the buffers of modules that have parameters.
    UserError where nothing matches, or not everything and ``init_partial`` is false.
    """
    name = reported(checkpoint)
    ours = {n: tensor for n, tensor in _weights(model) if not n.startswith(OWN)}
    average = average_of(checkpoint, name)
    theirs = checkpoint["state_dict"] | (average or {})
    shapes = {n: (tuple(theirs[n].shape), tuple(p.shape)) for n, p in ours.items() if n in theirs}
    fitting = [n for n, (there, here) in shapes.items() if there == here]
    other = {n: f"{there} there, {here} here" for n, (there, here) in shapes.items() if there != here}
    missing = [n for n in ours if n not in theirs]
    extra = [n for n in theirs if n not in model.state_dict()]
    path = config["init_from"]
    kinds = {"of another shape": [f"{n} {how}" for n, how in other.items()]}
    kinds |= {"not there": missing, "there not used": extra}
    if average is not None:
        trained = [n for n in fitting if ours[n].requires_grad]
        kinds["raw, as the average lacks them"] = [n for n in trained if n not in average]
    kinds["begin anew"] = [n for n, _ in model.named_parameters() if n.startswith(OWN)]
    notes = "; ".join(f"{len(names)} {kind} ({few(names)})" for kind, names in kinds.items() if names)
    if len(fitting) < len(ours) and not (fitting and config.get("init_partial")):
        fix = "init_partial=true takes those that fit" if fitting else "choose a run of the same network"
        problem = f"{len(fitting)} of {len(ours)} tensors fit by name and shape"
        raise UserError(f"init_from={path}: {problem}; {notes}; {fix}")
    with torch.no_grad():
        for n in fitting:
            ours[n].copy_(theirs[n])
    step = int(checkpoint.get("global_step", 0))
    line = f"init_from={path}: {len(fitting)} of {len(ours)} tensors taken (step {step}, weights {name})"
    log_line(run, "; ".join(filter(None, (line, notes))))
    if rank() == 0:
        record = {"checkpoint": str(checkpoint_at(path)), "step": step, "weights": name, "taken": fitting}
        about = record | {"other_shape": other, "missing": missing, "extra": extra}
        run.write_provenance({**run.provenance.record, "init_from": about})


def _weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            own |= dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            yield f"{prefix}.{name}".removeprefix("."), tensor


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
    code = [code_digest(config), versions(), sys.version]
    fit = to_json([sorted(settings.items()), data.data, data.split, code])
    return hashlib.blake2b(fit.encode(), digest_size=16).hexdigest()


def offer_fit(run: RunDirectory, digest: str, memory: float) -> None:
    """Record, for later runs of its sweep, that this run's fit has ended, and what memory it took."""
    if digest and not any(execution.changed for execution in run.provenance.executions):
        with contextlib.suppress(OSError, UserError):  # then they train themselves
            entry = to_json({"run": run.path.name, "id": run.provenance.id, "memory": memory})
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
        if other.provenance.id != entry.get("id"):  # begun anew since, by force=true
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


def compare_data(now: Fingerprint, seen: dict[str, Any] | None, judged: Sequence[str], fix: str) -> str:
    """Describe how data differ from those ``seen`` by a checkpoint's model (``remember``); "" if they do not.

    UserError, which ends with ``fix``: the model was trained on an item of a split in ``judged``.
    """
    if not seen or (seen["fingerprint"], seen["split"]) == (now.data, now.split):
        return ""
    before = ", ".join(f"{n} {name}" for name, n in seen["n"].items())
    after = ", ".join(f"{n} {name}" for name, n in now.n.items())
    change = f"fingerprint {seen['fingerprint'][:8]} -> {now.data[:8]}; {before} -> {after}"
    for split in judged:
        if trained := _trained_on(now.items.get(split), seen.get("items") or {}):
            items = f"{trained} of the {now.n[split]} items of split={split}"
            why = f"the data or their split have changed since ({change})"
            raise UserError(f"data: {items} are ones that this model was trained on: {why}; {fix}")
    measured = f"; no item of {' or '.join(judged)} was trained on" if judged and now.items else ""
    return f"data: not those that this model was trained on ({change}){measured}"


def remember(now: Fingerprint, seen: dict[str, Any] | None) -> dict[str, Any]:
    """Return a checkpoint's data record: today's fingerprint, and digests of all items trained on."""
    items = dict(now.items)
    changed = False
    if seen:
        changed = seen.get("changed", False) or (seen["fingerprint"], seen["split"]) != (now.data, now.split)
        theirs = (seen.get("items") or {}).get("train")
        if items and theirs is not None and (changed or len(theirs) > len(items["train"])):
            items["train"] = torch.cat([theirs, items["train"]]).unique()
    return {**now.record(), "changed": changed, "items": items}


def _trained_on(items: Tensor | None, seen: dict[str, Tensor]) -> int:
    if items is None or "train" not in seen:
        return 0
    doubles = torch.cat([seen[name] for name in HELD_OUT if name in seen] or [items[:0]])
    return int((torch.isin(items, seen["train"]) & ~torch.isin(items, doubles)).sum())
