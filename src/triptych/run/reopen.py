"""From a checkpoint alone back to its model and data; from those of its stages to a cascade."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from triptych.config.build import check_targets
from triptych.config.identity import data_identity, describe, leaves
from triptych.config.keys import check_values
from triptych.config.own_code import describe_error
from triptych.data.base import DataModule
from triptych.data.build import build_data, fingerprint
from triptych.diffusion.condition import Images, Kind, Vectors
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.run.checkpoints import load_weights
from triptych.run.directory import RunDirectory, checkpoint_at, log_line
from triptych.run.drawing import DRAWING, PROMPTED, Experiment, parts_read, set_key
from triptych.run.initialization import compare_data
from triptych.run.model import Budget, build_model, set_up_torch
from triptych.run.untrusted import check_config, read_checkpoint

SLACK = 2**28  # bytes that a model may need beside what its checkpoint holds


def reopen(
    ckpt: str,
    weights: str | None = None,
    data_root: str | None = None,
    adjust: Callable[[dict[str, Any]], None] | None = None,
    judged: Sequence[str] = (),
    key: str = "ckpt",
) -> Experiment:
    """Rebuild the model and data of ``ckpt``, a checkpoint or a run's directory, maybe a stranger's.

    ``adjust`` may change the configuration before anything is built; messages begin with ``key``. Other data
    than in training are reported on stderr. UserError: items of a ``judged`` split were trained on; the
    checkpoint or its data are missing or damaged, or name what may not be built.
    """
    where = f"{key}={ckpt}"
    try:
        file = checkpoint_at(ckpt)
        run = RunDirectory(file.absolute().parent.parent)
        checkpoint = read_checkpoint(file, key)
        config = check_config(checkpoint["triptych"]["config"], where)
        if data_root is not None:
            if "root" not in config["data"]:
                problem = f"{config['data']['_target_']} lies in no folder"
                raise UserError(f"data_root={data_root}: {problem}; pass null")
            config["data"]["root"] = data_root
        recorded = dict(config["bound"])
        if adjust is not None:
            adjust(config)
        check_targets(config)
        set_up_torch(config["threads"])
        data = build_data(config, download=False)
        seen = checkpoint["triptych"].get("data")
        changed = compare_data(fingerprint(data), seen, judged, "restore the data")
        log_line(None, changed.replace("data:", f"{ckpt}: data:", 1))
        step, most = checkpoint.get("global_step", 0), config.get("trainer", {}).get("max_steps")
        if step != most and run.status not in ("new", "finished"):  # "new": not in a run's directory
            log_line(None, f"{ckpt}: unfinished, step {step}" + f" of {most}" * bool(most))
        with Budget(2 * file.stat().st_size + SLACK):
            model = open_weights(config, data, checkpoint, weights, run.path, recorded)
    except UserError as error:  # of several runs that are opened, it says which
        if key == "ckpt" or str(error).startswith(f"{key}="):
            raise
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a configuration of another shape raises whatever its readers raise
        raise UserError(f"{where}: its model cannot be built ({describe_error(error)})") from error
    return Experiment(config, data, model, step=step)


def open_weights(
    config: dict[str, Any],
    data: DataModule,
    checkpoint: dict[str, Any] | None = None,
    weights: str | None = None,
    run: Path | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> BoundModel:
    """Build the model of ``config`` from its seed and load it from a checkpoint of ``run``, for evaluation.

    It follows from these alone, whatever was built, trained or drawn in this process before. ``weights``: as
    of ``load_weights``, None for the reported ones; ``recorded``: as of ``build_model``.
    """
    with isolate_rng():
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        model = build_model(config, data, open_model_stages(config, data), recorded)
    if checkpoint is not None:
        load_weights(model, checkpoint, weights or config["weights"], run)
    return model.eval()


def open_stages(
    key: str, paths: Sequence[str], weights: str | None = None, data_root: str | None = None
) -> list[Experiment]:
    """Return the experiments of a cascade's stages, which ``key`` names; UserError if they do not fit."""
    if len(paths) < 2:
        raise UserError(f"{key}={[*map(str, paths)]}: must be two runs or more, one a stage")
    runs = [
        reopen(str(path), weights, data_root, adjust=refuse_cascade, key=f"{key}[{i}]")
        for i, path in enumerate(paths)
    ]
    for i, stage in enumerate(runs):
        _check_stage(f"{key}[{i}]={paths[i]}", stage, runs[:i], last=i == len(runs) - 1)
    return runs


def open_model_stages(config: dict[str, Any], data: DataModule) -> dict[str, Any]:
    """Open ``model.stages``: their models, frozen, and the parts of ``data`` that all but the last are of."""
    if "stages" not in config["model"]:
        return {}
    paths = config["model"]["stages"]
    runs = open_stages("model.stages", paths)
    torch.set_num_threads(config["threads"])  # each stage has set its own
    for i, stage in enumerate(runs):
        if stage.data.levels is None:
            problem = "its data have no levels, and a density's bound does not add to a probability's"
            raise UserError(f"model.stages[{i}]={paths[i]}: {problem}; draw with triptych-sample cascade=...")
    theirs = runs[-1].config["data"]
    if data_identity(theirs) != data_identity(config["data"]):
        problem, fix = f"trained on {describe(theirs)}", f"pass one trained on {describe(config['data'])}"
        raise UserError(f"model.stages[{len(runs) - 1}]={paths[-1]}: {problem}; {fix}")
    for i, stage in enumerate(runs[:-1]):
        for name, split in data.splits.items():
            other, every = stage.data.splits[name], torch.arange(len(split))
            part = None if split.condition is None else split.condition.part(str(stage.data.known_as))
            if part is None or len(other) != len(split) or not torch.equal(other.batch(every).x, part.value):
                theirs = f"the {stage.data.known_as!r} of those of data {data.name}"
                problem = f"its {name} items are not {theirs}; they must be equal"
                raise UserError(f"model.stages[{i}]={paths[i]}: {problem}")
    names = [str(stage.data.known_as) for stage in runs[:-1]]
    return {"stages": [stage.model.requires_grad_(False) for stage in runs], "known_as": names}


def refuse_cascade(config: dict[str, Any]) -> None:
    """Refuse a cascade as a stage before it is opened: it would open its own stages, maybe itself."""
    if "stages" in config["model"]:
        raise UserError("a cascade cannot be a stage; pass the run of a diffusion model")


def drawn_as(what: str, config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with another way to draw: {"guidance.scale": 3.0}, or nested."""
    config = deepcopy(config) | {"condition_from": {}, "stages": {}}  # those before it give its parts
    for key, value in leaves(change) if change else ():
        group, _, name = str(key).partition(".")
        if group not in DRAWING or not name:
            raise UserError(f"{what}.{key}={value}: must be a key of {', '.join(DRAWING)}, as guidance.scale")
        if not set_key(config, str(key), value):
            raise UserError(f"{what}.{key}={value}: the stage's run has no such key")
    check_values({name: config.get(name) for name in DRAWING if config.get(name)}, "sample")
    return config


def _check_stage(
    what: str, stage: Experiment, before: list[Experiment], last: bool, earlier: Sequence[str] = ()
) -> None:
    if stage.model.denoiser is None:
        problem = f"a {type(stage.model).__name__} cannot be a stage"
        raise UserError(f"{what}: {problem}; pass the run of a diffusion model")
    parts = parts_read(stage.model, stage.data)
    drawn = {str(one.data.known_as): one for one in before}
    for name in parts:
        if name in drawn:
            _check_shape(what, name, stage.data.conditions[name], drawn[name])
        elif name not in (*PROMPTED, *earlier):
            fix = "put the run that does before it"
            raise UserError(f"{what}: needs {name!r}, which no stage before it draws; {fix}")
    if not last and stage.data.known_as is None:
        own = f"data {stage.data.name} of {_size(stage.data.shape)}"
        fix = "pass a run of lower resolution, as with data=shapes data.size=8"
        raise UserError(f"{what}: no later stage is conditioned on {own}; {fix}")
    if before and before[-1].data.known_as not in parts:
        missing = before[-1].data.known_as
        fix = f"pass a run trained with model.conditional=[text,{missing}]"
        raise UserError(f"{what}: not conditioned on {missing!r}, which the stage before it draws; {fix}")
    if before:
        _check_encoders(what, before[-1], stage.data)


def _check_shape(what: str, name: str, kind: Kind, drawn: Experiment) -> None:
    wanted = kind.shape if isinstance(kind, Images) else (kind.width,) if isinstance(kind, Vectors) else None
    if wanted is not None and tuple(wanted) != tuple(drawn.data.shape):
        problem = f"the stage that draws it draws {_size(drawn.data.shape)}; they must be equal"
        raise UserError(f"{what}: needs {name!r} of {_size(wanted)}, and {problem}")


def _check_encoders(what: str, before: Experiment, data: DataModule) -> None:
    if before.data.encoders != data.encoders:
        problem = "its text encoder, or its data.embeddings, is not that of the stage before it"
        raise UserError(f"{what}: {problem}; they must be equal")


def check_condition_source(
    what: str, name: str, run: Experiment, data: DataModule, earlier: Sequence[str] = ()
) -> None:
    """Raise UserError unless ``run`` draws ``name``, a condition of ``data``, from ``earlier`` at most."""
    _check_stage(what, run, [], last=False, earlier=earlier)
    if run.data.known_as != name:
        raise UserError(f"{what}: draws {run.data.known_as!r}; pass a run that draws {name!r}")
    _check_shape(what, name, data.conditions[name], run)
    _check_encoders(what, run, data)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
