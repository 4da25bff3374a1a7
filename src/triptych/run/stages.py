"""Whether the runs of a cascade's stages fit one another, and how each is drawn from."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from triptych.config.identity import leaves
from triptych.config.keys import check_values
from triptych.data.base import DataModule
from triptych.diffusion.condition import Images, Kind, Vectors
from triptych.errors import UserError
from triptych.run.drawing import parts_read
from triptych.run.experiment import Experiment

# parts that a person asks for; what else a stage is told, another draws
PROMPTED = ("label", "text", "text_embedding")
DRAWING = ("sampler", "guidance", "threshold")  # groups of how a stage draws


def check_stages(key: str, paths: Sequence[str], runs: list[Experiment]) -> None:
    """Raise UserError for the first of a cascade's stages that does not fit those before it."""
    for i, stage in enumerate(runs):
        _check(f"{key}[{i}]={paths[i]}", stage, runs[:i], last=i == len(runs) - 1)


def refuse_cascade(config: dict[str, Any]) -> None:
    """Refuse a cascade as a stage before it is opened: it would open its own stages, maybe itself."""
    if "stages" in config["model"]:
        raise UserError("a cascade cannot be a stage; pass the run of a diffusion model")


def drawn_as(what: str, config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with another way to draw; UserError for keys that say anything else.

    ``change``: {"guidance.scale": 3.0}, or {"guidance": {"scale": 3.0}}.
    """
    config = deepcopy(config) | {"condition_from": {}, "stages": {}}  # those before it give its parts
    for key, value in leaves(change) if change else ():
        group, _, name = str(key).partition(".")
        if group not in DRAWING or not name:
            raise UserError(f"{what}.{key}={value}: must be a key of {', '.join(DRAWING)}, as guidance.scale")
        if not set_key(config, str(key), value):
            raise UserError(f"{what}.{key}={value}: the stage's run has no such key")
    check_values({name: config.get(name) for name in DRAWING if config.get(name)}, "sample")
    return config


def set_key(config: dict[str, Any], key: str, value: Any) -> bool:
    """Give a dotted key of a configuration another value; False where there is no such key."""
    node: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or name not in node:
        return False
    node[name] = value
    return True


def _check(
    what: str, stage: Experiment, before: list[Experiment], last: bool, earlier: Sequence[str] = ()
) -> None:
    if not hasattr(stage.model, "denoiser"):
        raise UserError(
            f"{what}: a {type(stage.model).__name__} cannot be a stage; pass the run of a diffusion model"
        )
    parts = parts_read(stage.model, stage.data)
    drawn = {str(one.data.known_as): one for one in before}
    for name in parts:
        if name in drawn:
            _check_shape(what, name, stage.data.conditions[name], drawn[name])
        elif name not in (*PROMPTED, *earlier):
            raise UserError(
                f"{what}: needs {name!r}, which no stage before it draws; put the run that does before it"
            )
    if not last and stage.data.known_as is None:
        raise UserError(
            f"{what}: no later stage is conditioned on data {stage.data.name} of "
            f"{_size(stage.data.shape)}; pass a run of lower resolution, as with data=shapes data.size=8"
        )
    if before and before[-1].data.known_as not in parts:
        missing = before[-1].data.known_as
        raise UserError(
            f"{what}: not conditioned on {missing!r}, which the stage before it draws; pass a run trained "
            f"with model.conditional=[text,{missing}]"
        )
    for one in before[-1:]:
        _check_encoders(what, one, stage.data)


def _check_shape(what: str, name: str, kind: Kind, drawn: Experiment) -> None:
    wanted = kind.shape if isinstance(kind, Images) else (kind.width,) if isinstance(kind, Vectors) else None
    if wanted is not None and tuple(wanted) != tuple(drawn.data.shape):
        raise UserError(
            f"{what}: needs {name!r} of {_size(wanted)}, and the stage that draws it draws "
            f"{_size(drawn.data.shape)}; they must be equal"
        )


def _check_encoders(what: str, before: Experiment, data: DataModule) -> None:
    if before.data.encoders != data.encoders:
        raise UserError(
            f"{what}: its text encoder, or its data.embeddings, is not that of the stage before it; they "
            "must be equal"
        )


def check_condition_source(
    what: str, name: str, run: Experiment, data: DataModule, earlier: Sequence[str] = ()
) -> None:
    """Raise UserError unless ``run`` draws ``name``, a condition of ``data``, from ``earlier`` at most."""
    _check(what, run, [], last=False, earlier=earlier)
    if run.data.known_as != name:
        raise UserError(f"{what}: draws {run.data.known_as!r}; pass a run that draws {name!r}")
    _check_shape(what, name, data.conditions[name], run)
    _check_encoders(what, run, data)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
