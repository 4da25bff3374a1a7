r"""Weightings w(gamma) on the epsilon error, relative to the bound (ELBO = 1).

Whatever its target, a diffusion loss is ``E_t[w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2]
= 1/2 int w(gamma) E|eps - eps_hat|^2 dgamma`` (Kingma & Gao 2023): w is the *effective* weight per unit of
gamma, whatever schedule draws the times. "Plain MSE" is a weight too, and a different one in each space:
comparing x0-MSE with epsilon-MSE compares weights, not targets. All weights here are constants to the
gradient.
"""

import torch
from torch import Tensor

from triptych.declare import Positive, declared


@declared("objective.weighting")
class Weighting:
    """``weight(gamma, dgamma, own) -> w``, all (B,).

    ``own`` is the squared error scale of the objective's own space, so that
    ``own * |epsilon error|^2`` is the squared error there; ``dgamma`` is the schedule's slope.
    """

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        raise NotImplementedError


class Elbo(Weighting):
    """w = 1: the loss is the diffusion term of the bound."""

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        return torch.ones_like(gamma)


class Simple(Weighting):
    """Plain squared error in the objective's own space, times uniform: w = 2 own / gamma'(t).

    For epsilon this is DDPM's L_simple (Ho et al. 2020, eq. 14).
    """

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        return 2 * own / dgamma


class NCSN(Weighting):
    """NCSN (Song & Ermon 2019, eqs. 5-6): 1/2 lambda(sigma) |score error|^2, flat in time.

    Their lambda(sigma) = sigma^2 makes every level's loss of order one: it is 1/2 |eps - eps_hat|^2, so
    w = 1 / gamma'(t) whatever the objective's own space.
    """

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        return 1 / dgamma


class MinSNR(Weighting):
    """Min-SNR (Hang et al. 2023): x0 error times min(SNR, cap), so w = 2 min(1, cap e^gamma) / gamma'(t).

    The same effective weight for every space (their min(SNR, c), min(c / SNR, 1), min(SNR, c) / (SNR + 1)).

    Raises:
        ValueError: ``cap`` is not positive.
    """

    def __init__(self, cap: Positive = 5.0):
        self.cap = cap

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        return 2 * torch.clamp(self.cap * torch.exp(gamma), max=1.0) / dgamma


class Sigmoid(Weighting):
    """w = sigmoid(bias - log SNR) = sigmoid(bias + gamma) (Kingma & Gao 2023; Hoogeboom et al. 2024)."""

    def __init__(self, bias: float = 2.0):
        self.bias = bias

    def weight(self, gamma: Tensor, dgamma: Tensor, own: Tensor) -> Tensor:
        return torch.sigmoid(self.bias + gamma)
