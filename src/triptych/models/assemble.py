"""From a resolved configuration to the objects of a run: data, model, sampler."""

from typing import Any

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import Categorical, DiscretisedGaussian, GaussianDensity
from triptych.diffusion.denoiser import Denoiser, LevelOutput, Output
from triptych.diffusion.objective import Objective
from triptych.errors import UserError
from triptych.models.assemble_classifier import build_classifier
from triptych.models.base import BoundModel
from triptych.models.oracle import build_oracle

OTHERS = {"Classifier": build_classifier, "OracleModel": build_oracle}  # what is no denoiser to train
DECODERS = {"categorical": Categorical, "discretised_gaussian": DiscretisedGaussian}


def build_data(config: dict) -> DataModule:
    """The datamodule, loaded."""
    data = build(config["data"], "data")
    data.setup()
    return data


def build_model(config: dict, data: DataModule) -> BoundModel:
    """The LightningModule with freshly initialised weights; ``config`` is the whole resolved configuration.

    Raises:
        UserError: a value that its owner refuses, in one line.
    """
    kind = config["model"]["_target_"].rpartition(".")[2]
    if kind in OTHERS:
        return OTHERS[kind](config, data)
    schedule = build(config["schedule"], "schedule")
    process = build(config["process"], "process")
    name = config["objective"]["output"]
    try:
        output = LevelOutput(data.levels) if name == "levels" else Output(name)
        bound = Bound(schedule, decoder(config["bound"]["decoder"], data), config["bound"]["steps"])
    except ValueError as error:
        raise UserError(str(error)) from error
    conditional = config["denoiser"]["conditional"]
    if conditional and not data.num_classes:
        raise UserError(f"denoiser.conditional=true: data {data.name} has no labels; false is accepted")
    network = build(
        config["denoiser"]["network"],
        "denoiser.network",
        shape=data.shape,
        outputs=output.per_dim,
        num_classes=data.num_classes if conditional else 0,
        spacing=2 / (data.levels - 1) if data.levels else None,
    )
    objective = Objective(output.space, build(config["objective"]["weighting"], "objective.weighting"))
    return build(
        config["model"],
        "model",
        denoiser=Denoiser(network, output, process),
        schedule=schedule,
        objective=objective,
        bound=bound,
        optimizer=build(config["optimizer"], "optimizer"),
        lr_schedule=build(config["lr_schedule"], "lr_schedule"),
        shape=data.shape,
        discrete=data.levels is not None,
        seed=config["seed"],
        repeats=positive(config, "bound", "repeats"),
        val_repeats=positive(config, "bound", "val_repeats"),
        conditional=conditional,
        mixture=data.mixture,
    )


def positive(config: dict, group: str, key: str) -> int:
    """``config[group][key]`` if it is a whole number from 1; else UserError."""
    value: Any = config[group][key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{group}.{key}={value!r}: a whole number from 1 is accepted")
    return value


def decoder(name: str, data: DataModule):
    """p(x | z_0): by name for data with levels, a Gaussian density for the rest."""
    if name not in DECODERS:
        raise UserError(f"bound.decoder={name!r}: one of {', '.join(DECODERS)} is accepted")
    return DECODERS[name](data.levels) if data.levels else GaussianDensity()
