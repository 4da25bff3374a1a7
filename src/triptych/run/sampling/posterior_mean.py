"""Tweedie's formula as a measurement: a model's posterior mean against the true one, by noise level."""

from typing import Any

import torch

from triptych.diffusion.draws import Stream, seeded
from triptych.diffusion.mixture import Oracle
from triptych.diffusion.tweedie import tweedie_errors
from triptych.run.experiment import Experiment

LEVELS, POINTS = 20, 1000


def measure_posterior_mean(experiment: Experiment) -> dict[str, Any]:
    """{"tweedie": {"gamma", "excess", "stderr", "spread"}}, squares per dimension; {} without a truth.

    Test points that a conditional model is not told the labels of; excess: from the model's score to the
    oracle's mean; spread: the posterior's own variance.
    """
    model: Any = experiment.model  # of noise levels, if it has a denoiser
    data = experiment.data
    denoiser = getattr(model, "denoiser", None)
    if data.mixture is None or denoiser is None or model.of_latents or not len(data.splits["test"]):
        return {}
    truth = data.mixture.to(model.device)
    oracle = Oracle(truth, denoiser.process)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0], device=model.device)).tolist()
    x = data.splits["test"].batch(torch.arange(min(POINTS, len(data.splits["test"])))).x.to(model.device)
    generator = seeded(experiment.config["seed"], Stream.POSTERIOR_MEAN)
    with torch.no_grad():
        gammas = torch.linspace(low, high, LEVELS, device=model.device)
        rows = tweedie_errors(denoiser, oracle, x, gammas, generator)
    return {"tweedie": {key: [getattr(row, key) for row in rows] for key in rows[0]._fields}}
