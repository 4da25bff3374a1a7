"""A metric: how well a picture is recovered from a given amount of noise."""

import torch
from torch import Tensor

from triptych.declare import declared
from triptych.diffusion.draws import evaluation_draw
from triptych.models.metric import PerItem


@declared("metrics.psnr")
class Psnr(PerItem):
    """Peak signal-to-noise ratio of the estimate of x0 at one noise level, in decibels.

    10 log10(2^2 / mean |x - x0|^2).

    Args:
        gamma: the noise level, -log SNR.
    """

    higher_is_better = True

    def __init__(self, gamma: float = 0.0):
        super().__init__()
        self.gamma = gamma

    def values(self, model, batch) -> Tensor:
        gamma = torch.full((len(batch.x),), self.gamma, device=batch.x.device)
        noise = evaluation_draw(model.shape, batch.index.cpu(), model.seed, 0, 1).eps.to(batch.x)
        z = model.denoiser.process.diffuse(batch.x, gamma, noise)
        guess = model.denoiser(z, gamma, batch.condition if model.conditional else None)
        return 10 * torch.log10(4 / (guess.x0 - batch.x).square().flatten(1).mean(1))
