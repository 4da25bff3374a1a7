"""The exact denoiser of data whose truth is known, as a model: nothing to train, everything to measure."""

from functools import partial

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.weighting import Elbo
from triptych.errors import UserError
from triptych.models.assemble_bound import build_bound, build_likelihood, calibration, training_items
from triptych.models.common import common
from triptych.models.diffusion import Diffusion


class OracleModel(Diffusion):
    """A diffusion model with no parameters: its bound is the best there is."""


def build_oracle(config: dict, data: DataModule) -> OracleModel:
    """The model for a mixture's data.

    Raises:
        UserError: data whose truth is not known.
    """
    if data.mixture is None:
        raise UserError(
            f"model=oracle: the truth of data {data.name} is not known; ring, mixture is accepted"
        )
    schedule, process = build(config["schedule"], "schedule"), build(config["process"], "process")
    if any(p.requires_grad for p in schedule.parameters()):
        raise UserError("model=oracle: trains nothing; a schedule without parameters is accepted")
    if config["bound"].get("variance") == "learned":
        raise UserError("bound.variance=learned: model=oracle trains nothing; optimal is accepted")
    try:
        bound = build_bound(config, data, schedule)
        likelihood = build_likelihood(config, data, schedule)
    except ValueError as error:
        raise UserError(str(error)) from error
    return build(
        config["model"],
        "model",
        denoiser=Oracle(data.mixture, process),
        schedule=schedule,
        objective=Objective("score", Elbo()),
        bound=bound,
        **common(config, data),
        conditional=config["denoiser"]["conditional"],
        mixture=data.mixture,
        calibration=partial(calibration, data),
        levels=data.levels,
        training=training_items(data),
        **likelihood,
    )
