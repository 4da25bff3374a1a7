"""A noise schedule whose log SNR has a Laplace distribution (Hang et al. 2024)."""

import torch
from torch import Tensor

from triptych.declare import Positive, declared
from triptych.diffusion.schedule import Schedule


@declared("schedule")
class Laplace(Schedule):
    """A Laplace distribution of gamma, which spends most of the time near the centre.

    gamma(u) = centre + spread sign(u - 1/2) (-log(1 - 2 |u - 1/2|)).
    """

    def __init__(
        self, gamma_min: float, gamma_max: float, centre: float = 0.0, spread: Positive = 3.0
    ):
        self.centre, self.spread = centre, spread
        super().__init__(gamma_min, gamma_max)

    def _curve(self, u: Tensor) -> Tensor:
        return self.centre - self.spread * torch.sign(u - 0.5) * torch.log(2 * self._edge(u))

    def _slope(self, u: Tensor) -> Tensor:
        return self.spread / self._edge(u)

    def _inverse(self, gamma: Tensor) -> Tensor:
        away = (gamma - self.centre) / self.spread
        edge = 0.5 * torch.exp(-away.abs())
        return torch.where(away < 0, edge, 1 - edge)

    def _edge(self, u: Tensor) -> Tensor:
        return torch.minimum(u, 1 - u)
