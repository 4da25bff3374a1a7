r"""The variance V of a reverse step p(z_s | z_t) in discrete time.

p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), V I). The KL of one step is that of two Gaussians
whose means differ by c (x - x_hat),

    KL = 1/2 [d (b / V - 1 - log(b / V)) + c^2 |x - x_hat|^2 / V]
    c^2 |x - x_hat|^2 = b r |eps - eps_hat|^2

with b = beta tilde = sigma_s^2 (1 - exp(gamma_s - gamma_t)) and r = expm1(gamma_t - gamma_s) for
every process. A choice of V is therefore one number per step, ``log(V / b)``, or one per dimension.
In continuous time there is nothing to choose.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from triptych.declare import Share

from .condition import Condition
from .draws import Stream, seeded_generator
from .prediction import Prediction
from .process import Process, expand_like
from .protocol import AnyDenoiser
from .schedule import Schedule

NODES = 32  # maximum number of gammas at which ``Optimal`` measures the error


def step_of(schedule: Schedule, t: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return gamma_t and gamma_s, (B,) in double, of the step k / T that contains t in [0, 1).

    The KL of a step depends on their difference, which float32 loses from T = 1e5 on.
    """
    upper = (torch.floor(t.double() * steps) + 1).clamp(max=steps)
    return schedule.gamma(upper / steps), schedule.gamma((upper - 1) / steps)


def step_below(schedule: Schedule, gamma: Tensor, steps: int) -> Tensor:
    """Return the gamma one step 1 / T below ``gamma``, any shape, in double.

    Below gamma(1 / T) the difference is that of the first step.
    """
    gamma = gamma.double()
    t = schedule.t_of(gamma).clamp(min=1 / steps)
    return gamma - (schedule.gamma(t) - schedule.gamma(t - 1 / steps))


def step_kl(squared: Tensor, gamma_t: Tensor, gamma_s: Tensor, log_ratio: Tensor) -> Tensor:
    """Return KL(q(z_s | z_t, x) || p(z_s | z_t)), nats (B,).

    ``squared``: squared epsilon errors (B, *event); ``log_ratio``: log(V / b).
    """
    log_ratio = log_ratio.to(squared)
    scaled = (
        torch.exp(-log_ratio)
        * expand_like(torch.expm1(gamma_t - gamma_s), squared).to(squared)
        * squared
    )
    return 0.5 * (scaled + torch.expm1(-log_ratio) + log_ratio).flatten(1).sum(1)


class ReverseVariance(ABC):
    """Base class of reverse variances: ``log_ratio`` returns log(V / b) with b = beta tilde.

    ``learned``: whether V is an output of the network, which a term of the loss trains. ``named``:
    the classes by their short names.
    """

    named: ClassVar[Mapping[str, type["ReverseVariance"]]]
    learned = False

    def around(self, output: nn.Module) -> nn.Module:
        """Return ``output``; a learned V extends it to read further numbers of the network."""
        return output

    @abstractmethod
    def log_ratio(
        self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction
    ) -> Tensor:
        """Return log(V / b), broadcastable against z (B, *event)."""


class BetaTilde(ReverseVariance):
    """V = beta tilde, the variance of the posterior given x (DDPM's "fixed small").

    It would be exact if x were known.
    """

    def log_ratio(
        self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction
    ) -> Tensor:
        return torch.zeros_like(expand_like(gamma_t, guess.z))


class Beta(ReverseVariance):
    """V = beta, the variance of the forward step (DDPM's "fixed large").

    V = sigma_t^2 (1 - exp(gamma_s - gamma_t)), exact for x ~ N(0, I).

    Args:
        share: v of log V = v log beta + (1 - v) log beta tilde (Ho & Salimans 2022, classifier-free
            guidance, section 2).
    """

    def __init__(self, share: Share = 1.0):
        self.share = share

    def log_ratio(
        self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction
    ) -> Tensor:
        sigma_t, sigma_s = process.scales(gamma_t)[1], process.scales(gamma_s)[1]
        return expand_like(2 * self.share * torch.log(sigma_t / sigma_s), guess.z)


class Optimal(ReverseVariance):
    r"""The best isotropic variance of each step, measured on data (Analytic-DPM, Bao et al. 2022).

    V* = b + c^2 E|x - x_hat|^2 / d. In our terms log(V* / b) = log(1 + expm1(gamma_t - gamma_s)
    m(gamma_t)), where m is the mean squared epsilon error per dimension, between 0 and 1 for a
    reasonable denoiser. m is linear in gamma between its nodes.

    Args:
        gamma: (n,) increasing nodes, or None until ``measure`` has measured them.
        epsilon_mse: (n,) values of m at the nodes, E|eps - eps_hat|^2 / d.
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
        """Measure the mean squared epsilon error m on training items x (B, *event).

        There is one draw per item and node. The nodes are the levels ``gamma`` (n,), which
        increase, or 32 evenly spaced ones between its ends if there are more.
        """
        if len(gamma) > NODES:
            gamma = torch.linspace(gamma[0].item(), gamma[-1].item(), NODES).to(gamma)
        errors = []
        for i, node in enumerate(gamma):
            generator = seeded_generator(seed, Stream.CALIBRATION, i)
            eps = torch.randn(x.shape, generator=generator).to(x)
            guess = denoiser(denoiser.process.diffuse(x, node, eps), node, condition)
            errors.append(guess.epsilon_error(x, eps).square().mean())
        self.gamma, self.epsilon_mse = gamma, torch.stack(errors)

    def log_ratio(
        self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction
    ) -> Tensor:
        if self.gamma is None or self.epsilon_mse is None:
            raise RuntimeError(
                "variance=optimal: the denoiser's error is not measured yet; call measure() first"
            )
        error = _interpolate(gamma_t, self.gamma.to(gamma_t), self.epsilon_mse.to(gamma_t))
        return expand_like(torch.log1p(torch.expm1(gamma_t - gamma_s) * error), guess.z)


class Learned(ReverseVariance):
    """A learned variance between beta tilde and beta (iDDPM, Nichol & Dhariwal 2021, eq. 15).

    log V = f log beta + (1 - f) log beta tilde, f = (v + 1) / 2. v is an unbounded output of the
    network, one per dimension; see ``WithFraction``.
    """

    learned = True

    def around(self, output: nn.Module) -> nn.Module:
        return WithFraction(output)

    def log_ratio(
        self, process: Process, gamma_t: Tensor, gamma_s: Tensor, guess: Prediction
    ) -> Tensor:
        if guess.fraction is None:
            raise ValueError(
                "variance=learned: this denoiser predicts no variance; use beta_tilde, beta or "
                "optimal"
            )
        return guess.fraction * Beta().log_ratio(process, gamma_t, gamma_s, guess).to(
            guess.fraction
        )


class WithFraction(nn.Module):
    """An output that also reads the fraction f of a learned variance.

    f comes from one additional number per dimension; f = 0 is beta tilde, f = 1 is beta.
    """

    def __init__(self, output: nn.Module):
        super().__init__()
        self.output = output
        self.space = output.space
        # mypy: an attribute of a module may be a tensor
        self.per_dim: int = output.per_dim + 1  # type: ignore[assignment, operator]

    def forward(self, raw: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        inner_raw, last = raw[:, :-1], raw[:, -1]
        guess: Prediction = self.output(
            inner_raw.squeeze(1) if self.per_dim == 2 else inner_raw, z, alpha, sigma
        )
        guess.fraction = 0.5 * (last + 1)
        return guess


ReverseVariance.named = {
    "beta_tilde": BetaTilde,
    "beta": Beta,
    "optimal": Optimal,
    "learned": Learned,
}


def as_variance(choice: ReverseVariance | str | float, key: str) -> ReverseVariance:
    """Return the reverse variance for an object, a short name or the share of beta.

    ``key`` is for error messages.
    """
    if isinstance(choice, int | float):
        return Beta(choice)
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
