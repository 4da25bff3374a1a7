r"""The variance V of a reverse step p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), V I), in discrete time.

The KL of one step is that of two Gaussians whose means differ by c (x - x_hat),

    KL = 1/2 [d (b / V - 1 - log(b / V)) + c^2 |x - x_hat|^2 / V],   c^2 |x - x_hat|^2 = b r |eps - eps_hat|^2

with b = beta tilde = sigma_s^2 (1 - exp(gamma_s - gamma_t)) and r = expm1(gamma_t - gamma_s) for every
process. So a choice of V is one number a step, ``log(V / b)``, or one a dimension; in continuous time there
is nothing to choose.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .condition import Condition
from .draws import Stream, seeded
from .prediction import Prediction
from .process import Process, expand
from .protocol import AnyDenoiser
from .schedule import Schedule

NODES = 32  # gammas at which the error behind the optimal variance is measured, at most


def step_of(schedule: Schedule, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return (gamma_t, gamma_s), (B,) double, of the step that t in [0, 1) falls into on the grid k / T.

    In double, as their difference is all that a step's KL is made of: in float32 it is lost from T = 1e5 on.
    """
    upper = (torch.floor(t.double() * steps) + 1).clamp(max=steps)
    return schedule.gamma(upper / steps), schedule.gamma((upper - 1) / steps)


def step_below(schedule: Schedule, gamma: Tensor, steps: int) -> Tensor:
    """Return gamma_s of a step 1 / T from gamma, any shape, double; below gamma(1 / T) the first fall."""
    gamma = gamma.double()
    t = schedule.t_of(gamma).clamp(min=1 / steps)
    return gamma - (schedule.gamma(t) - schedule.gamma(t - 1 / steps))


def step_kl(squared: Tensor, gamma_t: Tensor, gamma_s: Tensor, log_ratio: Tensor) -> Tensor:
    """Return KL(q(z_s | z_t, x) || p(z_s | z_t)), nats (B,).

    ``squared``: epsilon errors' squares (B, *event); ``log_ratio``: log(V / b).
    """
    log_ratio = log_ratio.to(squared)
    scaled = torch.exp(-log_ratio) * expand(torch.expm1(gamma_t - gamma_s), squared).to(squared) * squared
    return 0.5 * (scaled + torch.expm1(-log_ratio) + log_ratio).flatten(1).sum(1)


class ReverseVariance(ABC):
    """``log_ratio(process, gamma_t, gamma_s, guess)`` -> log(V / b), broadcastable against z (B, *event).

    ``learned``: whether it is an output of the network, which a term of the loss trains. ``named``: classes
    that a short name stands for.
    """

    named: ClassVar[Mapping[str, type["ReverseVariance"]]]
    learned = False

    def around(self, output: nn.Module) -> nn.Module:
        """Return what reads the network's numbers: ``output``, and beside it whatever V needs of them."""
        return output

    @abstractmethod
    def log_ratio(self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction) -> Tensor:
        """Return log(V / b), broadcastable against z (B, *event)."""


class BetaTilde(ReverseVariance):
    """V = b, the posterior's own variance: right if x were known (DDPM's "fixed small")."""

    def log_ratio(self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction) -> Tensor:
        return torch.zeros_like(expand(gamma_t, guess.z))


class Beta(ReverseVariance):
    """V = sigma_t^2 (1 - exp(gamma_s - gamma_t)), the forward step's, for x ~ N(0, I) ("fixed large")."""

    def log_ratio(self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction) -> Tensor:
        sigma_t, sigma_s = process.alpha_sigma(gamma_t)[1], process.alpha_sigma(gamma_s)[1]
        return expand(2 * torch.log(sigma_t / sigma_s), guess.z)


class Optimal(ReverseVariance):
    r"""V* = b + c^2 E|x - x_hat|^2 / d, the best isotropic V of each step (Bao et al. 2022, Analytic-DPM).

    In our terms log(V* / b) = log(1 + expm1(gamma_t - gamma_s) m(gamma_t)) with m the mean squared epsilon
    error per dimension, between 0 and 1 for a fair denoiser; linear in gamma between its nodes.

    Args:
        gamma: (n,) increasing nodes, or None until ``measure`` has measured them.
        epsilon_mse: (n,) E|eps - eps_hat|^2 / d there.
    """

    def __init__(self, gamma: Tensor | None = None, epsilon_mse: Tensor | None = None):
        self.gamma, self.epsilon_mse = gamma, epsilon_mse

    @torch.no_grad()
    def measure(
        self,
        denoiser: AnyDenoiser,
        gamma: Tensor,
        x: Tensor,
        seed: int = 0,
        condition: Condition | None = None,
    ) -> None:
        """Measure m on training items x (B, *event), one draw an item and node.

        At the levels gamma (n,), which increase, or at 32 evenly spaced between their ends where they are
        more.
        """
        if len(gamma) > NODES:
            gamma = torch.linspace(gamma[0].item(), gamma[-1].item(), NODES).to(gamma)
        errors = []
        for i, node in enumerate(gamma):
            generator = seeded(seed, Stream.CALIBRATION, i)
            eps = torch.randn(x.shape, generator=generator).to(x)
            guess = denoiser(denoiser.process.diffuse(x, node, eps), node, condition)
            errors.append(guess.epsilon_error(x, eps).square().mean())
        self.gamma, self.epsilon_mse = gamma, torch.stack(errors)

    def log_ratio(self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction) -> Tensor:
        if self.gamma is None or self.epsilon_mse is None:
            raise RuntimeError("variance=optimal: the denoiser's error is not measured; calibrate the bound")
        error = _interpolate(gamma_t, self.gamma.to(gamma_t), self.epsilon_mse.to(gamma_t))
        return expand(torch.log1p(torch.expm1(gamma_t - gamma_s) * error), guess.z)


class Learned(ReverseVariance):
    """log V = f log beta + (1 - f) log beta tilde, f = (v + 1) / 2 (Nichol & Dhariwal 2021, eq. 15).

    v is an output of the network, one a dimension, unbounded; see ``WithFraction``.
    """

    learned = True

    def around(self, output: nn.Module) -> nn.Module:
        return WithFraction(output)

    def log_ratio(self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction) -> Tensor:
        if guess.fraction is None:
            raise ValueError("variance=learned: this denoiser has none; set beta_tilde, beta or optimal")
        return guess.fraction * Beta().log_ratio(process, gamma_t, gamma_s, guess).to(guess.fraction)


class WithFraction(nn.Module):
    """An output and, from one number more per dimension, the fraction f from beta tilde (0) to beta (1)."""

    def __init__(self, output: nn.Module):
        super().__init__()
        self.output = output
        self.space = output.space
        self.per_dim: int = output.per_dim + 1  # type: ignore[assignment, operator]

    def forward(self, raw: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        own, last = raw[:, :-1], raw[:, -1]
        guess: Prediction = self.output(own.squeeze(1) if self.per_dim == 2 else own, z, alpha, sigma)
        guess.fraction = 0.5 * (last + 1)
        return guess


ReverseVariance.named = {"beta_tilde": BetaTilde, "beta": Beta, "optimal": Optimal, "learned": Learned}


def as_variance(choice: ReverseVariance | str, key: str) -> ReverseVariance:
    """Return ``choice``, or what its short name stands for; ``key`` is for messages."""
    if not isinstance(choice, str):
        return choice
    if choice not in ReverseVariance.named:
        raise ValueError(f"{key}={choice!r}: must be one of {', '.join(ReverseVariance.named)}")
    return ReverseVariance.named[choice]()


def _interpolate(at: Tensor, nodes: Tensor, values: Tensor) -> Tensor:  # constant beyond the nodes
    if len(nodes) == 1:
        return values[0].expand(at.shape)
    right = torch.searchsorted(nodes, at.contiguous()).clamp(1, len(nodes) - 1)
    left = right - 1
    share = ((at - nodes[left]) / (nodes[right] - nodes[left])).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])
