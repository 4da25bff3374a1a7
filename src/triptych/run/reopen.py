"""Rebuild a model and its data from a checkpoint, and a cascade from those of its stages."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from triptych.config.identity import data_identity, describe, flatten_config
from triptych.config.keys import check_values
from triptych.config.own_code import describe_error
from triptych.data.base import DataModule
from triptych.data.build import build_data, fingerprint
from triptych.diffusion.condition import Images, Kind, Vectors
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.records import Checkpoint, Config
from triptych.run.averaging import load_weights
from triptych.run.directory import RunDirectory, log_line, resolve_checkpoint_path
from triptych.run.drawing import DRAWING, PROMPTED, condition_parts_read, set_key
from triptych.run.draws import recorded_draws
from triptych.run.experiment import Experiment
from triptych.run.leakage import compare_data
from triptych.run.model import build_model, set_up_process
from triptych.run.untrusted import check_config, read_checkpoint


def reopen(
    ckpt: str,
    weights: str | None = None,
    data_root: str | None = None,
    adjust: Callable[[Config], None] | None = None,
    evaluated_splits: Sequence[str] = (),
    key: str = "ckpt",
) -> Experiment:
    """Rebuild the model and data of a checkpoint, which may be untrusted.

    If the data differ from those in training, a warning is logged.

    Args:
        ckpt: a checkpoint or a run's directory.
        weights: as for ``load_weights``; by default the reported weights.
        data_root: replaces the data folder of the configuration.
        adjust: function that changes the configuration before anything is built.
        evaluated_splits: splits to evaluate; none of their items may have been trained on.
        key: the configuration key of ``ckpt``, for error messages.

    Raises:
        UserError: the checkpoint or its data are missing or damaged; the configuration names a
            class that is not allowed; or items of ``evaluated_splits`` were trained on.
    """
    where = f"{key}={ckpt}"
    file = resolve_checkpoint_path(ckpt)
    checkpoint = read_checkpoint(file, key)
    config = check_config(checkpoint["triptych"]["config"], where)
    if data_root is not None:
        config["data"]["root"] = data_root
    try:
        if adjust is not None:
            adjust(config)
        return _rebuild(ckpt, file, checkpoint, config, weights, evaluated_splits)
    except UserError as error:
        if key == "ckpt":
            raise
        raise UserError(f"{where}: {error}") from error  # Name the run, as there may be several.
    except Exception as error:  # A malformed configuration can raise any type of error.
        raise UserError(f"{where}: its model cannot be built ({describe_error(error)})") from error


def _rebuild(
    ckpt: str,
    file: Path,
    checkpoint: Checkpoint,
    config: Config,
    weights: str | None,
    evaluated_splits: Sequence[str],
) -> Experiment:
    """Do the work of ``reopen`` with the read ``checkpoint`` and its adjusted configuration."""
    run, step = RunDirectory(file.absolute().parent.parent), checkpoint["global_step"]
    with isolate_rng():
        set_up_process(config)
        data = build_data(config, download=False)
    trained_on = checkpoint["triptych"].get("data")
    changed = compare_data(fingerprint(data), trained_on, evaluated_splits, "restore the data")
    if changed:
        log_line(None, f"{ckpt}: {changed}")
    if run.status not in ("new", "finished") and step != config["trainer"]["max_steps"]:
        log_line(None, f"{ckpt}: training is not finished, at step {step}")
    model = open_weights(config, data, checkpoint, weights, run.path)
    return Experiment(config, data, model, step=step)


def open_weights(
    config: Config,
    data: DataModule,
    checkpoint: Checkpoint | None = None,
    weights: str | None = None,
    run: Path | None = None,
) -> BoundModel:
    """Build the model of ``config`` from its seed, and load weights from a checkpoint if given.

    The result depends only on the arguments, not on what this process has computed before.
    ``weights`` is as for ``load_weights``; None loads the reported weights. ``run`` is the run's
    directory, for snapshots.
    """
    with isolate_rng():
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        model = build_model(config, data, open_model_stages(config, data))
    if checkpoint is not None:
        load_weights(model, checkpoint, weights or config["weights"], run)
        model.random = recorded_draws(checkpoint)
    return model.eval()


def open_stages(
    key: str, paths: Sequence[str], weights: str | None = None, data_root: str | None = None
) -> list[Experiment]:
    """Open the stages of a cascade at ``paths``, the value of the configuration key ``key``.

    Raises UserError if a stage does not fit the stages before it.
    """
    runs: list[Experiment] = []
    for i, path in enumerate(paths):
        stage_key = f"{key}[{i}]"
        run = reopen(str(path), weights, data_root, adjust=refuse_cascade, key=stage_key)
        _check_stage(f"{stage_key}={path}", run, runs)
        runs.append(run)
    return runs


def open_model_stages(config: Config, data: DataModule) -> dict[str, Any]:
    """Open the runs in ``model.stages``; return the model's arguments ``stages``, ``known_as``.

    These are the frozen models, and the names of the condition parts that they draw.
    """
    if "stages" not in config["model"]:
        return {}
    paths = config["model"]["stages"]
    runs = open_stages("model.stages", paths)
    torch.set_num_threads(config["threads"])  # Opening a stage has changed the number.
    for i, stage in enumerate(runs):
        if stage.data.levels is None:
            raise UserError(
                f"model.stages[{i}]={paths[i]}: a bound of a cascade needs data with discrete "
                "levels; without a bound, use triptych-sample cascade=..."
            )
    last = runs[-1].config["data"]
    if data_identity(last) != data_identity(config["data"]):
        problem, fix = (
            f"trained on {describe(last)}",
            f"pass a run on {describe(config['data'])}",
        )
        raise UserError(f"model.stages[{len(runs) - 1}]={paths[-1]}: {problem}; {fix}")
    for i, stage in enumerate(runs[:-1]):
        _check_stage_items(f"model.stages[{i}]={paths[i]}", stage, data)
    names = [str(stage.data.known_as) for stage in runs[:-1]]
    return {"stages": [stage.model.requires_grad_(False) for stage in runs], "known_as": names}


def _check_stage_items(key: str, stage: Experiment, data: DataModule) -> None:
    """Check that a stage was trained on the values of the condition part that it draws.

    These are compared with that part of ``data``'s conditions.
    """
    part_name = str(stage.data.known_as)
    for name, split in data.splits.items():
        items = stage.data.splits[name].batch(torch.arange(len(stage.data.splits[name]))).x
        part = split.condition.part(part_name) if split.condition is not None else None
        if part is None or not torch.equal(items, part.value):
            raise UserError(
                f"{key}: its {name} items differ from the part {part_name!r} of data {data.name}; "
                "pass a run trained on the same items"
            )


def refuse_cascade(config: Config) -> None:
    """Raise UserError if a run that is to be a stage is a cascade, which might contain itself."""
    if "stages" in config["model"]:
        raise UserError("a cascade cannot be a stage; pass the run of a diffusion model")


def with_changed_sampling(key_prefix: str, config: Config, change: dict[str, Any]) -> Config:
    """Return a copy of a run's configuration with a ``change`` of its sampling keys.

    Example of a change: {"guidance.scale": 3.0}. ``key_prefix`` begins an error message.
    """
    # Drop these keys, as the earlier stages already draw its conditions.
    config = deepcopy(config) | {"condition_from": {}, "stages": {}}
    changes = dict(flatten_config(change)) if change else {}
    for key, value in changes.items():
        if str(key).partition(".")[0] not in DRAWING or not set_key(config, str(key), value):
            raise UserError(
                f"{key_prefix}.{key}={value}: not a sampling key of the stage's run; use keys of "
                f"{', '.join(DRAWING)}, as guidance.scale"
            )
    check_values({name: config.get(name) for name in DRAWING if config.get(name)}, "sample")
    return config


def _check_stage(key: str, stage: Experiment, earlier_stages: Sequence[Experiment]) -> None:
    """Check that a stage fits the stages before it.

    They must draw each part of its condition that the user does not pass, in the right shape.
    """
    drawn = {str(run.data.known_as): run for run in earlier_stages}
    _check_parts(key, stage, drawn)
    for name, run in drawn.items():
        if name in condition_parts_read(stage.model, stage.data):
            _check_shape(key, name, stage.data.conditions[name], run)
    if earlier_stages:
        name = str(earlier_stages[-1].data.known_as)
        if name not in condition_parts_read(stage.model, stage.data):
            raise UserError(
                f"{key}: not conditioned on {name!r}, which the previous stage draws; pass a run "
                f"trained with model.conditional=[text,{name}]"
            )
        _check_encoders(key, earlier_stages[-1], stage.data)


def _check_parts(key: str, stage: Experiment, drawn_parts: Iterable[str]) -> None:
    """Check that each condition part of a stage is passed by the user or is in ``drawn_parts``."""
    read = {*condition_parts_read(stage.model, stage.data)}
    missing = sorted(read - {*drawn_parts, *PROMPTED})
    if missing:
        raise UserError(
            f"{key}: needs {missing[0]!r}, which no earlier stage draws; put a run that draws it "
            "before this one"
        )


def _check_shape(key: str, name: str, kind: Kind, source_run: Experiment) -> None:
    """Check that the run ``source_run`` draws items of the shape of the condition part ``name``."""
    if isinstance(kind, Images):
        shape = tuple(kind.shape)
    elif isinstance(kind, Vectors):
        shape = (kind.width,)
    else:
        return
    if shape != tuple(source_run.data.shape):
        raise UserError(
            f"{key}: needs {name!r} of size {_format_shape(shape)}, but the stage draws "
            f"{_format_shape(source_run.data.shape)}; pass runs of equal size"
        )


def _check_encoders(key: str, earlier_stage: Experiment, data: DataModule) -> None:
    """Check that a stage and the stage before it encode texts and images in the same way."""
    if earlier_stage.data.encoders != data.encoders:
        raise UserError(
            f"{key}: its text encoder or data.embeddings differs from the previous stage's; pass "
            "runs with equal encoders"
        )


def check_condition_source(
    key: str, name: str, run: Experiment, data: DataModule, earlier: Sequence[str] = ()
) -> None:
    """Check that a run can draw the condition part ``name`` of ``data``.

    Its own condition may consist only of parts that the user passes, or that are in ``earlier``,
    which are drawn before it.
    """
    _check_parts(key, run, earlier)
    if run.data.known_as != name:
        raise UserError(f"{key}: draws {run.data.known_as!r}; pass a run that draws {name!r}")
    _check_shape(key, name, data.conditions[name], run)
    _check_encoders(key, run, data)


def _format_shape(shape: Sequence[int]) -> str:
    """Return a shape as "3x32x32"."""
    return "x".join(map(str, shape))
