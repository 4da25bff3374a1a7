"""From a resolved configuration with model=vae or hierarchical_vae to the model."""

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.errors import UserError
from triptych.models.common import common
from triptych.models.latent import LatentModel, outputs

UNREAD = (
    "schedule",
    "process",
    "denoiser",
    "objective",
    "likelihood",
)  # the model's files choose none of each


def build_latent(config: dict, data: DataModule) -> LatentModel:
    """The model with freshly initialised weights.

    Raises:
        UserError: a value that its owner refuses, or a choice that this model would not read.
    """
    node = dict(config["model"])
    kind = node["_target_"].rpartition(".")[2]
    for group in UNREAD:
        if config.get(group):
            raise UserError(f"{group}: {kind} has nothing that reads it; {group}=none is accepted")
    for key, unset in (("steps", None), ("variance", "beta_tilde")):
        value = config["bound"].get(key, unset)
        if value != unset:
            shown = "null" if unset is None else unset
            raise UserError(f"bound.{key}={value}: {kind} has nothing that reads it; {shown} is accepted")
    network = build(node.pop("network"), "model.network", shape=data.shape, outputs=outputs(data.levels))
    return build(
        node,
        "model",
        network=network,
        levels_of_data=data.levels,
        **common(config, data),
        mixture=data.mixture,
    )
