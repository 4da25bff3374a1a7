"""What is trained and what is reported, from a configuration: output, objective, bound, likelihood."""

from collections.abc import Callable
from typing import Any

import torch

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import Categorical, DiscretisedGaussian, GaussianDensity
from triptych.diffusion.denoiser import LevelOutput, Output
from triptych.diffusion.hybrid import Hybrid
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.objective import Objective
from triptych.diffusion.reverse_variance import WithFraction
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError

DECODERS = {"categorical": Categorical, "discretised_gaussian": DiscretisedGaussian}
CALIBRATION = 256  # training items on which an optimal reverse variance is measured


def build_output(config: dict, data: DataModule) -> Any:
    """What the network's numbers mean; one number more per dimension for a learned reverse variance.

    Raises:
        ValueError: an unknown output, or levels for data that has none.
    """
    name = config["objective"]["output"]
    output = LevelOutput(data.levels) if name == "levels" else Output(name)
    return WithFraction(output) if _variance(config) == "learned" else output


def build_objective(config: dict, space: str) -> Objective:
    """What is minimised.

    Raises:
        ValueError: a number of steps or a weight that its owner refuses.
    """
    weighting = build(config["objective"]["weighting"], "objective.weighting")
    steps = config["objective"].get("steps")
    if _variance(config) == "learned":
        return Hybrid(space, weighting, steps, config["objective"]["vlb_weight"])
    return Objective(space, weighting, steps)


def build_bound(config: dict, data: DataModule, schedule: Schedule) -> Bound:
    """What is reported.

    Raises:
        ValueError: a number of steps or a variance that its owner refuses.
    """
    return Bound(schedule, decoder(config, data), config["bound"]["steps"], _variance(config))


def calibration(data: DataModule) -> Batch:
    """Training items for an optimal reverse variance."""
    train = data.splits["train"]
    return train.batch(torch.arange(min(CALIBRATION, len(train))))


def training_items(data: DataModule) -> Callable[[int], Batch]:
    """n -> the first n training items: what a report's draws are controlled by."""
    train = data.splits["train"]
    return lambda n: train.batch(torch.arange(min(n, len(train))))


def build_likelihood(config: dict, data: DataModule, schedule: Schedule) -> dict[str, Any]:
    """``likelihood`` and ``likelihood_items`` for ``Diffusion``; empty for likelihood=none.

    Raises:
        UserError: data with levels and no dequantisation, or the other way round; guided or clipped samples.
        ValueError: a number that its owner refuses.
    """
    node = config.get("likelihood") or {}
    if not node:
        return {}
    for group in ("guidance", "threshold"):
        if config.get(group):
            raise UserError(
                f"likelihood with a {group}: a guided or clipped guess is not the score of any density, "
                f"so it has none; {group}=none is accepted"
            )
    kind = node["dequantisation"]
    if (data.levels is None) != (kind == "none"):
        accepted = "none" if data.levels is None else "uniform, lossless"
        raise UserError(f"likelihood.dequantisation={kind} with data {data.name}: {accepted} is accepted")
    likelihood = Likelihood(
        schedule,
        tolerance=node["tolerance"],
        probes=node["probes"],
        dequantisation=kind,
        decoder=decoder(config, data),
        levels=data.levels,
        seed=config["seed"],
    )
    return {"likelihood": likelihood, "likelihood_items": node["items"]}


def decoder(config: dict, data: DataModule):
    """p(x | z_0): by name for data with levels, a Gaussian density for the rest."""
    name = config["bound"]["decoder"]
    if name not in DECODERS:
        raise UserError(f"bound.decoder={name!r}: one of {', '.join(DECODERS)} is accepted")
    return DECODERS[name](data.levels) if data.levels else GaussianDensity()


def _variance(config: dict) -> str:
    return config["bound"].get("variance", "beta_tilde")
