"""From a checkpoint alone back to the model and data that it was made with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from triptych.config.build import check_targets
from triptych.config.identity import data_identity, describe
from triptych.data.base import DataModule
from triptych.data.build import build_data
from triptych.data.fingerprint import fingerprint
from triptych.errors import UserError
from triptych.quiet import quiet
from triptych.run.checkpoints import load_weights, read_checkpoint
from triptych.run.directory import checkpoint_at
from triptych.run.experiment import Experiment
from triptych.run.leakage import compare_data, log_line
from triptych.run.model import Budget, build_model
from triptych.run.stages import check_stages, refuse_cascade
from triptych.run.untrusted import check_config

SLACK = 2**28  # bytes that a model may need beside what its checkpoint holds


def reopen(
    ckpt: str,
    weights: str | None = None,
    data_root: str | None = None,
    adjust: Callable[[dict[str, Any]], None] | None = None,
    judged: Sequence[str] = (),
    key: str = "ckpt",
) -> Experiment:
    """Rebuild what ``ckpt`` holds: a checkpoint, or a run's directory, of which it is the reported one.

    ``adjust`` may change the configuration before anything is built; messages begin with ``key``, which names
    the checkpoint. The file may be a stranger's: docs/security.md. Data other than those the model was
    trained on are said in one line on stderr.

    Raises:
        UserError: a checkpoint that is missing, truncated or foreign, or names what may not be built; data
            that is not where it was, or of which an item of a split in ``judged`` is one that the model was
            trained on.
    """
    where = f"{key}={ckpt}"
    try:
        file = checkpoint_at(ckpt)
        checkpoint = read_checkpoint(file, key)
        config = check_config(checkpoint["triptych"]["config"], where)
        if data_root is not None:
            if "root" not in config["data"]:
                raise UserError(
                    f"data_root={data_root}: {config['data']['_target_']} lies in no folder; pass null"
                )
            config["data"]["root"] = data_root
        if adjust is not None:
            adjust(config)
        check_targets(config)
        quiet()
        torch.set_flush_denormal(True)
        torch.set_num_threads(config["threads"])  # sums in another order would differ in the last digit
        data = build_data(config, download=False)
        seen = checkpoint["triptych"].get("data")
        changed = compare_data(fingerprint(data), seen, judged, "restore the data")
        log_line(None, changed.replace("data:", f"{ckpt}: data:", 1))
        with Budget(2 * file.stat().st_size + SLACK, "its file"):
            model = build_model(config, data, open_model_stages(config, data))
        load_weights(model, checkpoint, weights or config["weights"], file.absolute().parents[1])
    except UserError as error:  # of several runs that are opened, it says which
        if key == "ckpt" or str(error).startswith(f"{key}="):
            raise
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a configuration of another shape raises whatever its readers raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{where}: its model cannot be built ({reason})") from error
    return Experiment(config, data, model.eval())


def open_stages(
    key: str, paths: Sequence[str], weights: str | None = None, data_root: str | None = None
) -> list[Experiment]:
    """Return the experiments of the stages of a cascade, in their order; ``key`` is what names them.

    Raises:
        UserError: fewer than two, one that cannot be opened, or one that does not fit those before it.
    """
    if len(paths) < 2:
        raise UserError(f"{key}={[*map(str, paths)]}: must be two runs or more, one a stage")
    runs = [
        reopen(str(path), weights, data_root, adjust=refuse_cascade, key=f"{key}[{i}]")
        for i, path in enumerate(paths)
    ]
    check_stages(key, paths, runs)
    return runs


def open_model_stages(config: dict[str, Any], data: DataModule) -> dict[str, Any]:
    """Open ``model.stages``: their models, frozen, and the parts of ``data`` that all but the last are of.

    Raises:
        UserError: they do not fit one another or ``data``, or are not of the same items.
    """
    if "stages" not in config["model"]:
        return {}
    paths = config["model"]["stages"]
    runs = open_stages("model.stages", paths)
    theirs = runs[-1].config["data"]
    if data_identity(theirs) != data_identity(config["data"]):
        raise UserError(
            f"model.stages[{len(runs) - 1}]={paths[-1]}: trained on {describe(theirs)}; pass one trained "
            f"on {describe(config['data'])}"
        )
    for i, stage in enumerate(runs[:-1]):
        for name, split in data.splits.items():
            other, every = stage.data.splits[name], torch.arange(len(split))
            part = None if split.condition is None else split.condition.part(str(stage.data.known_as))
            if part is None or len(other) != len(split) or not torch.equal(other.batch(every).x, part.value):
                raise UserError(
                    f"model.stages[{i}]={paths[i]}: its {name} items are not the {stage.data.known_as!r} of "
                    f"those of data {data.name}; they must be equal"
                )
    names = [str(stage.data.known_as) for stage in runs[:-1]]
    return {"stages": [stage.model.requires_grad_(False) for stage in runs], "known_as": names}
