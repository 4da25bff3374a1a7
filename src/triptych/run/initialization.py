"""Initialise a run: from scratch, its own checkpoint, or another run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.build import HELD_OUT, Fingerprint, fingerprint
from triptych.errors import UserError
from triptych.run.averaging import average_of, reported
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import LAST, RunDirectory, checkpoint_at, log_line, write_atomic
from triptych.run.experiment import Experiment
from triptych.run.leakage import compare_data, remember
from triptych.run.parsing import few
from triptych.run.pipeline import is_pipeline, read_pipeline
from triptych.run.processes import rank
from triptych.run.shared_fit import fit_digest, take_fit
from triptych.run.untrusted import interpreting, read_checkpoint

# The parts that keep their own weights, whatever run they start from.
OWN = ("schedule.", "loss_module.")


@dataclass(frozen=True)
class Origin:
    """The state that a run starts from."""

    start: Path | None  # the checkpoint from which the run resumes
    step: int  # the step of that checkpoint
    adopted: dict[str, Any] | None  # with ``trained``, the other run's checkpoint
    initial: dict[str, Any] | None  # at a first start with ``init_from``, the other run's checkpoint
    data: dict[str, Any]  # the record of the data for checkpoints, with all items trained on
    fit: str = ""  # a digest of what is about to be fitted, for other runs of its sweep

    @property
    def facts(self) -> dict[str, Any]:
        """The part of the data's record that leaves out the items."""
        return {key: value for key, value in self.data.items() if key != "items"}


def find_origin(run: RunDirectory, experiment: Experiment) -> Origin:
    """Find what ``run`` starts from; UserError if its test items were trained on."""
    config = experiment.config
    now = fingerprint(experiment.data)
    fit = fit_digest(run, now)
    take_fit(run, fit)
    start = newest_readable(run.checkpoints())
    with interpreting(start or config.get("trained") or config.get("init_from")):
        if config.get("trained"):
            return _adopt(run, experiment, now, start)
        if start is not None:
            return _resume(run, start, now, fit)
        return _begin(run, config, now, fit)


def _resume(run: RunDirectory, start: Path, now: Fingerprint, fit: str) -> Origin:
    """Resume from the run's own checkpoint."""
    checkpoint = read_checkpoint(start)
    if start.name != LAST and rank() == 0:
        # Resuming reads the last checkpoint.
        write_atomic(start.with_name(LAST), start.read_bytes())
    known = checkpoint["triptych"]
    if "fit_of" in known:
        fit = ""  # The other run has already offered the fit.
        if rank() == 0:
            run.write_provenance({**run.provenance.record, "fit_of": known["fit_of"]})
    fix = "restore the data, or pass force=true to start over"
    log_line(run, compare_data(now, known.get("data"), HELD_OUT, fix))
    data = remember(now, known.get("data"))
    if data["changed"]:
        fit = ""  # The fit was started with other data.
    return Origin(start, checkpoint["global_step"], None, None, data, fit)


def _begin(run: RunDirectory, config: dict[str, Any], now: Fingerprint, fit: str) -> Origin:
    """Start from scratch, or with the weights of the run in ``init_from``."""
    _tell_of_other_data(run, now)
    data, initial = remember(now, None), None
    path = config.get("init_from")
    if path:
        fix = f"init_from={path} must have seen no item of validation or test"
        initial, _ = read_other("init_from", path, now, fix)
        # This model was also trained on the other run's items.
        data["items"] = remember(now, initial["triptych"].get("data"))["items"]
    return Origin(None, 0, None, initial, data, fit)


def _adopt(run: RunDirectory, experiment: Experiment, now: Fingerprint, start: Path | None) -> Origin:
    """Take the model of the run, or of the diffusers pipeline, that ``trained`` names.

    ``start``: the checkpoint of it that an earlier start, or this run's first process, has written.
    """
    config = experiment.config
    path = config["trained"]
    if is_pipeline(path):
        checkpoint = read_pipeline(path, experiment.model)
        log_line(run, f"trained={path}: unknown training data; leakage cannot be detected")
    else:
        checkpoint, line = read_other("trained", path, now, f"restore the data of trained={path}")
        log_line(run, line)
    step = 0
    if start is None:
        _tell_of_other_data(run, now)
    else:
        step = read_checkpoint(start)["global_step"]
    adopted = {key: checkpoint[key] for key in ("state_dict", "callbacks", "global_step")}
    adopted["triptych"] = checkpoint["triptych"] | {"config": config}
    return Origin(start, step, adopted, None, remember(now, checkpoint["triptych"].get("data")))


def _tell_of_other_data(run: RunDirectory, now: Fingerprint) -> None:
    before = run.provenance.fingerprint
    if before and before != now.data:
        log_line(
            run,
            "data: changed since this run was first started, of which no step was kept",
        )


def read_other(key: str, path: str, now: Fingerprint, fix: str) -> tuple[dict[str, Any], str]:
    """Read the checkpoint at ``key``, and a warning if its data differ from ``now``."""
    checkpoint = read_checkpoint(checkpoint_at(path), key)
    return checkpoint, compare_data(now, checkpoint["triptych"].get("data"), HELD_OUT, fix)


def initialise(
    run: RunDirectory, config: dict[str, Any], model: nn.Module, checkpoint: dict[str, Any]
) -> None:
    """Copy the other run's weights into ``model`` where name and shape match.

    Copied are parameters, except those of a learned schedule or loss, and the buffers of modules
    with parameters. UserError: nothing matches, or not everything with ``init_partial=false``.
    """
    path, weights = config["init_from"], reported(checkpoint)
    source = checkpoint["state_dict"] | (average_of(checkpoint, weights) or {})
    tensors = {name: tensor for name, tensor in _weights(model) if not name.startswith(OWN)}
    taken = [name for name, tensor in tensors.items() if _fits(source.get(name), tensor)]
    left = [name for name in tensors if name not in taken]
    if left and not (taken and config.get("init_partial")):
        problem = f"{len(taken)} of {len(tensors)} tensors fit by name and shape, not {few(left)}"
        fix = "init_partial=true takes those that fit" if taken else "choose a run of the same network"
        raise UserError(f"init_from={path}: {problem}; {fix}")
    with torch.no_grad():
        for name in taken:
            tensors[name].copy_(source[name])
    step = int(checkpoint["global_step"])
    line = f"init_from={path}: {len(taken)} of {len(tensors)} tensors taken"
    line += f" (step {step}, weights {weights})"
    if left:
        line += f"; not {few(left)}"
    log_line(run, line)
    if rank() == 0:
        about = {
            "checkpoint": str(checkpoint_at(path)),
            "step": step,
            "weights": weights,
            "taken": taken,
        }
        run.write_provenance({**run.provenance.record, "init_from": about})


def _fits(source: Tensor | None, tensor: Tensor) -> bool:
    return source is not None and source.shape == tensor.shape


def _weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of parameters, and of the buffers of modules with parameters."""
    for prefix, module in model.named_modules():
        tensors: dict[str, Any] = dict(module.named_parameters(recurse=False))
        if tensors:
            tensors |= dict(module.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            yield f"{prefix}.{name}".removeprefix("."), tensor
