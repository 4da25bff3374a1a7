"""Initialise a run: from scratch, its own checkpoint, or another run."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.build import HELD_OUT, Fingerprint, fingerprint
from triptych.diffusion.draws import BatchDraws
from triptych.errors import UserError
from triptych.records import Checkpoint, Config, Entries
from triptych.run.averaging import find_average, reported_weights
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import (
    LAST,
    RunDirectory,
    log_line,
    resolve_checkpoint_path,
    write_atomic,
)
from triptych.run.draws import recorded_draws
from triptych.run.experiment import Experiment
from triptych.run.leakage import compare_data, data_record
from triptych.run.parsing import abbreviate_list
from triptych.run.pipeline import is_pipeline, read_pipeline
from triptych.run.processes import rank
from triptych.run.shared_fit import fit_digest, take_fit
from triptych.run.untrusted import read_checkpoint, reraise_as_foreign_checkpoint

# Prefixes of weights that ``init_from`` does not copy: those of a learned schedule or loss.
OWN = ("schedule.", "loss_module.")


@dataclass(frozen=True)
class Origin:
    """The state that a run starts from."""

    start: Path | None  # the checkpoint to resume from
    step: int  # the training step of that checkpoint, or 0
    adopted: Checkpoint | None  # with ``trained``, the other run's checkpoint
    initial: Checkpoint | None  # at a first start with ``init_from``, the other run's checkpoint
    data: Entries  # the data record for checkpoints, with all items that the model is trained on
    fit: str = ""  # digest of the fit, if other runs of the sweep may copy it
    draws: BatchDraws | None = None  # the random-number stream of ``start`` or ``adopted``

    @property
    def data_summary(self) -> Entries:
        """The data record without the items' hashes."""
        return {key: value for key, value in self.data.items() if key != "items"}


def find_origin(run: RunDirectory, experiment: Experiment) -> Origin:
    """Determine what ``run`` starts from: its own checkpoint, another run or random weights.

    Raises UserError if these weights were trained on items that are now in validation or test.
    """
    config = experiment.config
    now = fingerprint(experiment.data)
    fit = fit_digest(run, now)
    take_fit(run, fit)
    start = newest_readable(run.checkpoints())
    with reraise_as_foreign_checkpoint(start or config.get("trained") or config.get("init_from")):
        if config.get("trained"):
            return _adopt_trained(run, experiment, now, start)
        if start is not None:
            return _resume(run, start, now, fit)
        return _start_new(config, now, fit)


def _resume(run: RunDirectory, start: Path, fingerprint: Fingerprint, fit: str) -> Origin:
    """Return the origin of a run that resumes from its own checkpoint ``start``."""
    checkpoint = read_checkpoint(start)
    if start.name != LAST and rank() == 0:
        # Resuming reads last.ckpt, so replace it with the checkpoint that the run starts from.
        write_atomic(start.with_name(LAST), start.read_bytes())
    known = checkpoint["triptych"]
    if "fit_of" in known:
        fit = ""  # This fit was copied from another run, which has already offered it.
        if rank() == 0:
            run.write_provenance({**run.provenance.record, "fit_of": known["fit_of"]})
    fix = "restore the data, or pass force=true to start over"
    log_line(run, compare_data(fingerprint, known.get("data"), HELD_OUT, fix))
    data = data_record(fingerprint, known.get("data"))
    if data["changed"]:
        fit = ""  # The fit began with other data, so it is not that of this configuration.
    draws = recorded_draws(checkpoint)
    return Origin(start, checkpoint["global_step"], None, None, data, fit, draws)


def _start_new(config: Config, fingerprint: Fingerprint, fit: str) -> Origin:
    """Return the origin of a run from random weights, or from those of the run ``init_from``."""
    data, initial = data_record(fingerprint, None), None
    path = config.get("init_from")
    if path:
        fix = f"pass a run for init_from={path} that was not trained on validation or test items"
        initial, _ = read_other_checkpoint("init_from", path, fingerprint, fix)
        # The other run's training items count as seen by this model, too.
        data["items"] = data_record(fingerprint, initial["triptych"].get("data"))["items"]
    return Origin(None, 0, None, initial, data, fit)


def _adopt_trained(
    run: RunDirectory, experiment: Experiment, fingerprint: Fingerprint, start: Path | None
) -> Origin:
    """Return the origin of a run whose model another run has trained (key ``trained``).

    That model may also be a diffusers pipeline. ``start`` is this run's own copy of its checkpoint,
    written by an earlier start or by rank 0; None if there is none yet.
    """
    config = experiment.config
    path = config["trained"]
    if is_pipeline(path):
        checkpoint = read_pipeline(path, experiment.model)
        log_line(run, f"trained={path}: unknown training data; leakage cannot be detected")
    else:
        checkpoint, line = read_other_checkpoint(
            "trained", path, fingerprint, f"restore the data of trained={path}"
        )
        log_line(run, line)
    record_source(run, path, checkpoint["state_dict"])
    step = 0
    if start is not None:
        step = read_checkpoint(start)["global_step"]
    adopted = {key: checkpoint[key] for key in ("state_dict", "callbacks", "global_step")}
    adopted["triptych"] = checkpoint["triptych"] | {"config": config}
    data = data_record(fingerprint, checkpoint["triptych"].get("data"))
    return Origin(start, step, adopted, None, data, draws=recorded_draws(checkpoint))


def read_other_checkpoint(
    key: str, path: str, fingerprint: Fingerprint, fix: str
) -> tuple[Checkpoint, str]:
    """Read the checkpoint at ``path``, the value of ``key``; compare its data with this run's.

    Return the checkpoint and a warning about differing data, or "". ``fingerprint`` is that of this
    run's data; ``fix`` ends an error message.
    """
    checkpoint = read_checkpoint(resolve_checkpoint_path(path), key)
    return checkpoint, compare_data(fingerprint, checkpoint["triptych"].get("data"), HELD_OUT, fix)


def initialise(run: RunDirectory, config: Config, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights of the run ``init_from`` into ``model`` where name and shape match.

    These are all parameters except those of a learned schedule or loss, and the buffers of modules
    that have parameters. Raises UserError if nothing matches, or if some tensors do not match and
    ``init_partial`` is false.
    """
    path, weights = config["init_from"], reported_weights(checkpoint)
    source = checkpoint["state_dict"] | find_average(checkpoint, weights)
    tensors = {name: tensor for name, tensor in _named_weights(model) if not name.startswith(OWN)}
    taken = [name for name, tensor in tensors.items() if _has_same_shape(source.get(name), tensor)]
    left = [name for name in tensors if name not in taken]
    if left and not (taken and config.get("init_partial")):
        raise UserError(
            f"init_from={path}: only {len(taken)} of {len(tensors)} tensors match; without a "
            f"match: {abbreviate_list(left)}; choose a run with the same network, or pass "
            "init_partial=true to copy the matching tensors"
        )
    with torch.no_grad():
        for name in taken:
            tensors[name].copy_(source[name])
    step = int(checkpoint["global_step"])
    line = f"init_from={path}: {len(taken)} of {len(tensors)} tensors copied"
    line += f" (step {step}, weights {weights})"
    if left:
        line += f"; not copied: {abbreviate_list(left)}"
    log_line(run, line)
    record_source(run, path, source)
    if rank() == 0:
        entry = {
            "checkpoint": str(resolve_checkpoint_path(path)),
            "step": step,
            "weights": weights,
            "taken": taken,
        }
        run.write_provenance({**run.provenance.record, "init_from": entry})


def record_source(run: RunDirectory, path: str, weights: dict[str, Any]) -> None:
    """Record a digest of the other run's weights at ``path``, from which this run starts.

    The other run may be trained again, so that its path names other weights later.
    """
    if rank() != 0:
        return
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        if isinstance(tensor, Tensor):  # A module's extra state may be anything.
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    entry = {"path": str(path), "digest": digest.hexdigest()}
    run.write_provenance({**run.provenance.record, "source": entry})


def _has_same_shape(source: Tensor | None, tensor: Tensor) -> bool:
    """Return whether ``source`` exists and has the shape of ``tensor``."""
    return source is not None and source.shape == tensor.shape


def _named_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of all parameters, and of buffers in modules that have parameters."""
    for prefix, module in model.named_modules():
        tensors: dict[str, Any] = dict(module.named_parameters(recurse=False))
        if tensors:
            tensors |= dict(module.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            yield f"{prefix}.{name}".removeprefix("."), tensor
