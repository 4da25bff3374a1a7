"""Euler's method for the probability-flow ODE."""

from torch import Tensor

from .base import Sampler, Step


class Euler(Sampler):
    r"""Euler's method on dy/ds = epsilon: y_s = y_t + (s_s - s_t) eps_hat, first order.

    In z this is alpha_s x_hat + sigma_s eps_hat: DDIM with eta = 0 (Song et al. 2021, sec. 4.3), the step
    that ``Heun`` corrects.
    """

    def step(self, z: Tensor, at: Step) -> Tensor:
        return at.guess(z, at.gamma_t).at(*at.process.alpha_sigma(at.gamma_s))
