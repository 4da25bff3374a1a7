r"""Losses: each is one weight w(gamma) on the epsilon error, relative to the bound (ELBO = 1).

Whatever its target, a diffusion loss is ``E_t[w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2]
= 1/2 int w(gamma) E|eps - eps_hat|^2 dgamma`` (Kingma & Gao 2023): w is the *effective* weight per unit of
gamma, whatever schedule or ``times`` draw the levels. A squared error in the space S, averaged over a density
q of gamma, is

    E_q |S error|^2 = int q(gamma) s_S(gamma)^2 E|eps - eps_hat|^2 dgamma,   w = 2 q s_S^2

with s_S = |S error| / |epsilon error| (``prediction.error_scale``), and q = 1 / gamma'(t) where the times are
uniform. So "plain MSE" is another weight in each space: comparing x0-MSE with epsilon-MSE compares weights,
not targets. All weights here are constants to the gradient.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from triptych.declare import Count, IsClass, NonNegative, Positive, declared

from .denoiser import Output
from .prediction import Space, error_scale, space_of
from .process import Process
from .times import Density, LogNormal, Stratified, Uniform


class Level(NamedTuple):
    """Where a loss is weighed: gamma, its slope and its time t, any shape; own: the network's output's space.

    lower, steps: at T steps gamma_s and T, where dgamma is T expm1(gamma - lower); None in continuous time.
    """

    process: Process
    gamma: Tensor
    dgamma: Tensor
    t: Tensor
    own: str | Space
    lower: Tensor | None = None
    steps: int | None = None

    @property
    def slope(self) -> Tensor:
        """gamma's own slope: at T steps T (gamma - lower), in continuous time dgamma."""
        if self.steps is None or self.lower is None:
            return self.dgamma
        return self.steps * (self.gamma - self.lower)

    def averaged(self, over: Density, most: float = math.inf) -> Tensor:
        """Return the density at gamma, or ``most`` if above; at T steps, T / dgamma times a step's share."""
        if self.steps is None or self.lower is None or isinstance(over, Stratified):
            return over.per_gamma(self.gamma.clamp(max=most), self.dgamma, self.t)
        back = torch.linspace(1 / 32, 31 / 32, 16).to(self.gamma).view(-1, *(1,) * self.gamma.ndim)
        gamma, t = self.gamma - back * (self.gamma - self.lower), (self.t - back / self.steps).clamp(min=0)
        within = over.per_gamma(gamma.clamp(max=most), self.slope.expand_as(gamma), t).mean(0)
        return within * self.slope / self.dgamma

    def squared(self, space: str | Space) -> Tensor:
        """Return s^2, the squared error in a space where that of epsilon is 1."""
        return error_scale(space, *self.process.alpha_sigma(self.gamma)).square()


@declared("objective.loss")
class Loss(ABC):
    """``weight(at) -> w`` at a ``Level``, of its gamma's shape or (); ``of_steps``: of T steps alone."""

    of_steps = False

    @abstractmethod
    def weight(self, at: Level) -> Tensor:
        """Return w, of gamma's shape or ()."""

    def nats(self, at: Level, squared: Tensor, dims: int) -> Tensor:
        """Return w 1/2 gamma' |eps - eps_hat|^2 of items of ``dims`` numbers, ``squared`` and gamma (B,)."""
        with torch.no_grad():
            weight = self.weight(at)
        return (0.5 * weight * at.dgamma).to(squared) * squared


class Elbo(Loss):
    """w = 1: the loss is the diffusion term of the bound."""

    def weight(self, at: Level) -> Tensor:
        return torch.ones_like(at.gamma)


class Vlb(Elbo):
    """T KL(q(z_s | z_t, x) || p(z_s | z_t)) under the bound's own reverse variance: iDDPM's L_vlb.

    Where the variance is learned, the gradient reaches mean and variance together (Nichol & Dhariwal 2021,
    sec. 3.3; Ho et al. 2020, table 2, "learned diagonal"). Under beta tilde it is ``Elbo`` at T steps.
    """

    of_steps = True


class Squared(Loss):
    """Plain squared error in one space, whatever the network's output is.

    ``epsilon`` is DDPM's L_simple (Ho et al. 2020, eq. 14) and Salimans & Ho's (2022) weight SNR on the x0
    error, ``x0`` their weight 1, ``v`` their SNR + 1 (under a variance-preserving process), ``velocity`` that
    of flow matching.

    Args:
        space: its name, or an output that is read in it; None: the space of the network's output.
        over: the density of levels that the error is averaged over; None: uniform times.
    """

    def __init__(
        self,
        space: Literal["x0", "epsilon", "score", "v", "velocity"] | Annotated[Output, IsClass()] | None,
        over: Density | None = None,
    ):
        own = space.space if isinstance(space, Output) else space
        self.space = None if own is None else space_of(own)
        self.over = over or Uniform()

    def weight(self, at: Level) -> Tensor:
        return 2 * at.squared(self.space or at.own) * at.averaged(self.over)


class Simple(Squared):
    """Plain squared error in the space of the network's output: each paper's own, an axis of outputs."""

    def __init__(self, over: Density | None = None):
        super().__init__(None, over)


class PathVelocity(Loss):
    """Plain squared error of the path's own velocity dz/dt, t the schedule's (Lipman et al. 2023; SiT).

    dz/dt = alpha' x + sigma' eps and gamma = 2 ln(sigma / alpha), so that its error is |sigma' - sigma
    alpha' / alpha| = sigma gamma'(t) / 2 times that of epsilon: w = sigma^2 gamma'(t) / 2. At T steps gamma'
    is T (gamma_t - gamma_s). It is SiT's weighted score loss and its velocity loss at once (Ma et al. 2024);
    on the straight path it is ``velocity``'s, with the cosine schedule that of ``v``, each times a constant.
    """

    def weight(self, at: Level) -> Tensor:
        return 0.5 * at.process.alpha_sigma(at.gamma)[1].square() * at.slope * (at.slope / at.dgamma)


class MuTilde(Loss):
    """Plain squared error of the posterior mean at T steps (Ho et al. 2020, eq. 8 without 1 / 2 sigma^2).

    mu tilde = alpha_s x0 (1 - q) + ... z, q = e^{gamma_s - gamma_t}, so its error is alpha_s (1 - q) times
    that of x0, and s = alpha_s (1 - q) e^{gamma_t / 2}.
    """

    of_steps = True

    def weight(self, at: Level) -> Tensor:
        assert at.lower is not None
        scale = at.process.alpha_sigma(at.lower)[0] * torch.expm1(at.lower - at.gamma)
        return 2 * scale.square() * torch.exp(at.gamma) / at.dgamma


class NCSN(Loss):
    """NCSN (Song & Ermon 2019, eqs. 5-6): 1/2 lambda(sigma) |score error|^2, flat in time.

    Their lambda(sigma) = sigma^2 makes it 1/2 |eps - eps_hat|^2, so w = 1 / gamma'(t).
    """

    def weight(self, at: Level) -> Tensor:
        return 1 / at.dgamma


class P2(Squared):
    """P2 (Choi et al. 2022): L_simple times 1 / (k + SNR)^power, their gamma; less of fine details.

    On the epsilon error, so w = 2 (k + e^{-gamma})^{-power} / gamma'(t) over uniform times.

    Args:
        k, power: their k, 1, and gamma, .5 or 1 (``p2_k``, ``p2_gamma`` of their code); power 0 is L_simple.
        over: the density of levels that the error is averaged over; None: uniform times.
    """

    def __init__(self, k: Positive = 1.0, power: NonNegative = 1.0, over: Density | None = None):
        super().__init__("epsilon", over)
        self.k, self.power = k, power

    def weight(self, at: Level) -> Tensor:
        return super().weight(at) * (self.k + torch.exp(-at.gamma)) ** -self.power


class MinSNR(Loss):
    """Min-SNR (Hang et al. 2023): x0 error times min(SNR, cap), so w = 2 min(1, cap e^gamma) / gamma'(t).

    The same effective weight for every space (their min(SNR, c), min(c / SNR, 1), min(SNR, c) / (SNR + 1)).
    """

    def __init__(self, cap: Positive = 5.0):
        self.cap = cap

    def weight(self, at: Level) -> Tensor:
        return 2 * torch.clamp(self.cap * torch.exp(at.gamma), max=1.0) / at.dgamma


class TruncatedSNR(Loss):
    """Salimans & Ho 2022, sec. 4: x0 error times max(SNR, 1), so w = 2 max(1, e^gamma) / gamma'(t).

    The larger of the squared errors in epsilon and in x0.
    """

    def weight(self, at: Level) -> Tensor:
        return 2 * torch.clamp(torch.exp(at.gamma), min=1.0) / at.dgamma


class Sigmoid(Loss):
    """w = sigmoid(bias - log SNR) = sigmoid(bias + gamma) (Kingma & Gao 2023; Hoogeboom et al. 2024)."""

    def __init__(self, bias: float = 2.0):
        self.bias = bias

    def weight(self, at: Level) -> Tensor:
        return torch.sigmoid(self.bias + at.gamma)


class EDM(Loss):
    """EDM (Karras et al. 2022, table 1): E_sigma[lambda(sigma) |x0 error|^2], ln sigma ~ N(mean, std^2).

    With their sigma = e^{gamma / 2} and lambda = (sigma^2 + sd^2) / (sigma sd)^2 this is the squared error of
    F, so w = 2 q(gamma) (e^gamma + sd^2) / sd^2 with q = N(gamma; 2 mean, (2 std)^2). ``times=log_normal`` of
    the same mean and std makes each draw's loss theirs.

    Args:
        mean, std: their P_mean and P_std; sigma_data: sd, standard deviation of the data.
        monotonic: below the log SNR at which w is largest, it stays there (Kingma & Gao 2023,
            "EDM-monotonic"): in continuous time the loss is then a bound of noisy data.
    """

    def __init__(
        self, mean: float = -1.2, std: Positive = 1.2, sigma_data: Positive = 0.5, monotonic: bool = False
    ):
        self.over, self.sigma_data = LogNormal(mean, std), sigma_data
        self.peak = _peak(2 * mean, 2 * std, sigma_data**2) if monotonic else math.inf

    def weight(self, at: Level) -> Tensor:
        gamma = at.gamma.clamp(max=self.peak)
        scale = 1 + torch.exp(gamma) / self.sigma_data**2
        return 2 * scale * at.averaged(self.over, self.peak)


class EDM2(EDM, nn.Module):
    r"""EDM's loss under a learned uncertainty u(sigma) (Karras et al. 2024, eqs. 14-16, 21).

    ``E_sigma[lambda(sigma) / e^u |x0 error|^2 + u]`` a dimension: at the optimum e^u is the error itself, and
    each level counts alike. The effective weight is that of EDM over e^u. u is linear in ``channels`` cosines
    of ln(sigma) / 4 with random frequencies, the same in each run.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(
        self, mean: float = -0.4, std: Positive = 1.0, sigma_data: Positive = 0.5, channels: Count = 128
    ):
        nn.Module.__init__(self)
        super().__init__(mean, std, sigma_data)
        own = torch.Generator().manual_seed(0)  # a network built later begins as under another loss
        self.register_buffer("frequency", 2 * math.pi * torch.randn(channels, generator=own))
        self.register_buffer("phase", 2 * math.pi * torch.rand(channels, generator=own))
        self.row = nn.Parameter(torch.randn(channels, generator=own))

    def uncertainty(self, gamma: Tensor) -> Tensor:
        """Return u at gamma, of its shape; the row counts by its direction alone."""
        waves = math.sqrt(2) * torch.cos(gamma.to(self.row).unsqueeze(-1) / 8 * self.frequency + self.phase)
        return (waves * (self.row / self.row.norm())).sum(-1)  # in half precision no matrix product

    def weight(self, at: Level) -> Tensor:
        return super().weight(at) * torch.exp(-self.uncertainty(at.gamma))

    def nats(self, at: Level, squared: Tensor, dims: int) -> Tensor:
        if self.training:  # its length would slow it, see ``networks.edm2``
            self.row.data.div_(self.row.data.square().mean().sqrt())
        u = self.uncertainty(at.gamma)
        error = 0.5 * super().weight(at).to(squared) * squared * torch.exp(-u)
        return at.dgamma.to(squared) * (error + at.averaged(self.over).to(squared) * dims * u)


def _peak(mean: float, std: float, variance: float) -> float:
    """Return the gamma of the largest N(gamma; mean, std^2) (e^gamma + variance).

    A root of gamma = mean + std^2 sigmoid(gamma - log variance), met from either side; the larger maximum.
    """
    log_variance = math.log(variance)

    def log_w(gamma: float) -> float:
        more = max(gamma, log_variance) + math.log1p(math.exp(-abs(gamma - log_variance)))
        return more - 0.5 * ((gamma - mean) / std) ** 2

    roots = []
    for gamma in (mean + std**2, mean):
        for _ in range(1000):
            gamma = mean + std**2 / (1 + math.exp(min(log_variance - gamma, 700)))
        roots.append(gamma)
    return max(roots, key=log_w)
