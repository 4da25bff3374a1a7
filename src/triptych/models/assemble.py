"""From a resolved configuration to the objects of a run: data, model, sampler."""

from functools import partial

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.diffusion.denoiser import Denoiser
from triptych.errors import UserError
from triptych.models.assemble_bound import (
    build_bound,
    build_likelihood,
    build_objective,
    build_output,
    calibration,
    training_items,
)
from triptych.models.assemble_classifier import build_classifier
from triptych.models.assemble_latent import build_latent
from triptych.models.base import BoundModel
from triptych.models.common import common
from triptych.models.oracle import build_oracle

OTHERS = {  # what is no denoiser to train
    "Classifier": build_classifier,
    "OracleModel": build_oracle,
    "VAE": build_latent,
    "HierarchicalVAE": build_latent,
}


def build_data(config: dict, download: bool = True) -> DataModule:
    """The datamodule, loaded; ``download=False``: from what is there, whatever the configuration asks for."""
    data = build(config["data"], "data")
    changes = config.get("augmentation") or {}
    data.augmentations = [build(node, f"augmentation.{name}") for name, node in changes.items() if node]
    if not download and getattr(data, "download", False):
        data.download = False  # type: ignore[attr-defined]  # it would write where the configuration says
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
    for group in ("schedule", "process", "denoiser", "objective"):
        if not config[group]:
            raise UserError(f"{group}=none: a diffusion model has one; model=vae is accepted")
    schedule = build(config["schedule"], "schedule")
    process = build(config["process"], "process")
    try:
        output = build_output(config, data)
        objective = build_objective(config, output.space)
        bound = build_bound(config, data, schedule)
        likelihood = build_likelihood(config, data, schedule)
    except ValueError as error:
        raise UserError(str(error)) from error
    conditional = config["denoiser"]["conditional"]
    if conditional and not data.conditions:
        raise UserError(
            f"denoiser.conditional=true: data {data.name} has no labels and no other conditions; false is"
        )
    network = build(
        config["denoiser"]["network"],
        "denoiser.network",
        shape=data.shape,
        outputs=output.per_dim,
        conditions=data.conditions if conditional else {},
        spacing=2 / (data.levels - 1) if data.levels else None,
    )
    return build(
        config["model"],
        "model",
        denoiser=Denoiser(network, output, process),
        schedule=schedule,
        objective=objective,
        bound=bound,
        **common(config, data),
        conditional=conditional,
        mixture=data.mixture,
        calibration=partial(calibration, data),
        levels=data.levels,
        training=training_items(data),
        **likelihood,
    )
