"""``init_from=``: a run that begins with the weights of another, and says which of them it took."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import UserError
from triptych.runs.directory import RunDirectory, checkpoint_at
from triptych.runs.untrusted import check_checkpoint

if TYPE_CHECKING:
    from torch import nn

    from triptych.data.fingerprint import Fingerprint

SHOWN = 3  # names of each kind in the line; provenance.json has all


def check_initial(config: dict[str, Any], begun: bool) -> None:
    """At the door: an absolute path, and a file that may be opened, unless the run has taken it already.

    Raises:
        UserError: nothing there; a file that ``ckpt=`` would refuse; ``trained`` beside it.
    """
    path = config.get("init_from")
    if path is None:
        return
    if config.get("trained") is not None:
        raise UserError(f"init_from={path}: trained=... trains nothing; one of the two is accepted")
    config["init_from"] = str(Path(path).absolute())
    if not begun:
        check_checkpoint(path, "init_from")


def read_initial(config: dict[str, Any], now: "Fingerprint") -> dict[str, Any] | None:
    """The checkpoint that ``init_from`` names, None where it names none.

    Raises:
        UserError: it cannot be read; it was trained on what would now validate or test this run.
    """
    from triptych.data.fingerprint import HELD_OUT  # torch, here: the door checks before it is imported
    from triptych.runs.changed import compare_data
    from triptych.runs.checkpoints import read_checkpoint

    path = config.get("init_from")
    if path is None:
        return None
    found = read_checkpoint(checkpoint_at(path), "init_from")
    accepted = f"data of which init_from={path} has seen no item of validation or test are accepted"
    compare_data(now, found["triptych"].get("data"), HELD_OUT, accepted)
    return found


def initialise(run: RunDirectory, config: dict[str, Any], model: "nn.Module", found: dict[str, Any]) -> None:
    """Put the weights by which the other run reports into ``model``, where name and shape are the same.

    Parameters are taken, and the buffers of modules that have parameters; what a schedule or a bound has as
    constants follows from this run's own configuration. What was taken is said and recorded.

    Raises:
        UserError: nothing matches.
    """
    import torch

    from triptych.runs.changed import say
    from triptych.runs.checkpoints import reported, state
    from triptych.runs.processes import rank

    name = reported(found)
    theirs, ours = state(found, name), dict(_weights(model))
    shapes = {n: (tuple(theirs[n].shape), tuple(p.shape)) for n, p in ours.items() if n in theirs}
    taken = [n for n, (there, here) in shapes.items() if there == here]
    other = {n: f"{there} there, {here} here" for n, (there, here) in shapes.items() if there != here}
    missing = [n for n in ours if n not in theirs]
    extra = [n for n in theirs if n not in model.state_dict()]
    path = config["init_from"]
    parts = [
        (f"{len(other)} of another shape", [f"{n} {how}" for n, how in other.items()]),
        (f"{len(missing)} not there", missing),
        (f"{len(extra)} there not used", extra),
    ]
    said = "; ".join(f"{what} ({_some(names)})" for what, names in parts if names)
    if not taken:
        raise UserError(
            f"init_from={path}: none of the {len(ours)} tensors here is there by name and shape; {said}"
        )
    with torch.no_grad():
        for n in taken:
            ours[n].copy_(theirs[n])
    step = int(found.get("global_step", 0))
    line = f"init_from={path}: {len(taken)} of {len(ours)} tensors taken (step {step}, weights {name})"
    say(run, "; ".join(filter(None, (line, said))))
    if rank() == 0:
        record = {"checkpoint": str(checkpoint_at(path)), "step": step, "weights": name, "taken": taken}
        about = record | {"other_shape": other, "missing": missing, "extra": extra}
        run.write("provenance.json", run.provenance() | {"init_from": about})


def _weights(model: "nn.Module") -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            own |= dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            yield f"{prefix}.{name}".removeprefix("."), tensor


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
