r"""Training losses: each is one weight w(gamma) on the epsilon error; the bound (ELBO) has w = 1.

Whatever the network predicts, a diffusion loss is

    E_t[w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2] = 1/2 int w(gamma) E|eps - eps_hat|^2 dgamma

(Kingma & Gao 2023): w is the *effective* weight per unit of gamma, whatever schedule or ``times``
draw the levels. A squared error in the space S, averaged over a density q of gamma, is

    E_q |S error|^2 = int q(gamma) s_S(gamma)^2 E|eps - eps_hat|^2 dgamma,   w = 2 q s_S^2

with s_S = |S error| / |epsilon error| (``prediction.error_scale``), and q = 1 / gamma'(t) if the
times are uniform. "Plain MSE" is therefore another weight in each space: comparing x0-MSE with
epsilon-MSE compares weights, not targets. No gradient flows through the weights.
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
    """The noise level at which a loss is weighted.

    ``gamma``, its derivative ``dgamma`` and its time ``t`` have any shape. ``own``: the space of
    the network's output. ``lower``, ``steps``: at T steps gamma_s and T, and then dgamma is T
    expm1(gamma - lower); None in continuous time.
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
        """The slope of gamma: T (gamma - lower) at T steps, dgamma in continuous time."""
        if self.steps is None or self.lower is None:
            return self.dgamma
        return self.steps * (self.gamma - self.lower)

    def averaged(self, density: Density, gamma_max: float = math.inf) -> Tensor:
        """Return the density ``density`` at gamma, or at ``gamma_max`` if gamma is larger.

        At T steps it is T / dgamma times the probability of the step.
        """
        if self.steps is None or self.lower is None or isinstance(density, Stratified):
            return density.per_gamma(self.gamma.clamp(max=gamma_max), self.dgamma, self.t)
        back = torch.linspace(1 / 32, 31 / 32, 16, device=self.gamma.device).to(self.gamma)
        back = back.view(-1, *(1,) * self.gamma.ndim)
        gamma, t = (
            self.gamma - back * (self.gamma - self.lower),
            (self.t - back / self.steps).clamp(min=0),
        )
        within = density.per_gamma(gamma.clamp(max=gamma_max), self.slope.expand_as(gamma), t).mean(
            0
        )
        return within * self.slope / self.dgamma

    def squared(self, space: str | Space) -> Tensor:
        """Return s^2, the squared error in ``space`` for a squared epsilon error of 1."""
        return error_scale(space, *self.process.alpha_sigma(self.gamma)).square()


@declared("objective.loss")
class Loss(ABC):
    """Base class of losses: ``weight`` returns the weight w at a ``Level``.

    ``of_steps``: whether the loss exists at T steps only.
    """

    of_steps = False

    @abstractmethod
    def weight(self, at: Level) -> Tensor:
        """Return w, of gamma's shape or ()."""

    def nats(self, at: Level, squared: Tensor, dims: int) -> Tensor:
        """Return the loss w 1/2 gamma' |eps - eps_hat|^2 of each item, nats (B,).

        ``squared``: |eps - eps_hat|^2, (B,); ``dims``: the numbers in one item.
        """
        with torch.no_grad():
            weight = self.weight(at)
        return (0.5 * weight * at.dgamma).to(squared) * squared


class Elbo(Loss):
    """The diffusion term of the bound as the loss: w = 1."""

    def weight(self, at: Level) -> Tensor:
        return torch.ones_like(at.gamma)


class Vlb(Elbo):
    """iDDPM's L_vlb: T times the KL of a reverse step, under the bound's own reverse variance.

    The KL is KL(q(z_s | z_t, x) || p(z_s | z_t)). If the variance is learned, the gradient trains
    mean and variance together (Nichol & Dhariwal 2021, sec. 3.3; Ho et al. 2020, table 2, "learned
    diagonal"). With beta tilde it is ``Elbo`` at T steps.
    """

    of_steps = True


class Squared(Loss):
    """Plain squared error in one space, which need not be that of the network's output.

    ``epsilon`` is DDPM's L_simple (Ho et al. 2020, eq. 14), which is the weight SNR on the x0 error
    in Salimans & Ho (2022). ``x0`` is their weight 1, and ``v`` their SNR + 1 (under a
    variance-preserving process). ``velocity`` is the loss of flow matching.

    Args:
        space: name of the space, or an ``Output``, whose space is used; None: the space of the
            network's output.
        over: the density of levels over which the error is averaged; None: uniform times.
    """

    def __init__(
        self,
        space: Literal["x0", "epsilon", "score", "v", "velocity"]
        | Annotated[Output, IsClass()]
        | None,
        over: Density | None = None,
    ):
        own = space.space if isinstance(space, Output) else space
        self.space = None if own is None else space_of(own)
        self.over = over or Uniform()

    def weight(self, at: Level) -> Tensor:
        return 2 * at.squared(self.space or at.own) * at.averaged(self.over)


class Simple(Squared):
    """Plain squared error in the space of the network's output.

    Each paper trains its own kind of output with this loss.
    """

    def __init__(self, over: Density | None = None):
        super().__init__(None, over)


class PathVelocity(Loss):
    """Squared error of the velocity dz/dt in the schedule's time (Lipman et al. 2023; SiT).

    dz/dt = alpha' x + sigma' eps and gamma = 2 ln(sigma / alpha), so its error is |sigma' - sigma
    alpha' / alpha| = sigma gamma'(t) / 2 times that of epsilon, and w = sigma^2 gamma'(t) / 2. At T
    steps gamma' is T (gamma_t - gamma_s). This is both SiT's weighted score loss and its velocity
    loss (Ma et al. 2024). On the straight path it is the loss ``velocity``, with the cosine
    schedule the loss ``v``, each times a constant.
    """

    def weight(self, at: Level) -> Tensor:
        return (
            0.5 * at.process.alpha_sigma(at.gamma)[1].square() * at.slope * (at.slope / at.dgamma)
        )


class MuTilde(Loss):
    """Plain squared error of the posterior mean at T steps (Ho et al. 2020, eq. 8).

    The factor 1 / 2 sigma^2 of eq. 8 is left out. mu tilde = alpha_s x0 (1 - q) + ... z with q =
    e^{gamma_s - gamma_t}, so its error is alpha_s (1 - q) times that of x0, and s = alpha_s (1 - q)
    e^{gamma_t / 2}.
    """

    of_steps = True

    def weight(self, at: Level) -> Tensor:
        assert at.lower is not None
        scale = at.process.alpha_sigma(at.lower)[0] * torch.expm1(at.lower - at.gamma)
        return 2 * scale.square() * torch.exp(at.gamma) / at.dgamma


class NCSN(Loss):
    """NCSN's weighted score matching (Song & Ermon 2019, eqs. 5-6), with uniform times.

    The loss is 1/2 lambda(sigma) |score error|^2. The paper's lambda(sigma) = sigma^2 makes it 1/2
    |eps - eps_hat|^2, so w = 1 / gamma'(t).
    """

    def weight(self, at: Level) -> Tensor:
        return 1 / at.dgamma


class P2(Squared):
    """P2 weighting (Choi et al. 2022): DDPM's L_simple times 1 / (k + SNR)^power.

    It lowers the weight of fine details. On the epsilon error and over uniform times, w = 2 (k +
    e^{-gamma})^{-power} / gamma'(t).

    Args:
        k, power: k and gamma of the paper, there 1, and .5 or 1 (``p2_k``, ``p2_gamma`` in its
            code); power 0 is L_simple.
        over: the density of levels over which the error is averaged; None: uniform times.
    """

    def __init__(self, k: Positive = 1.0, power: NonNegative = 1.0, over: Density | None = None):
        super().__init__("epsilon", over)
        self.k, self.power = k, power

    def weight(self, at: Level) -> Tensor:
        return super().weight(at) * (self.k + torch.exp(-at.gamma)) ** -self.power


class MinSNR(Loss):
    """Min-SNR weighting (Hang et al. 2023): the x0 error times min(SNR, cap).

    w = 2 min(1, cap e^gamma) / gamma'(t). The effective weight is the same for every space of the
    output (in the paper min(SNR, c), min(c / SNR, 1) and min(SNR, c) / (SNR + 1)).
    """

    def __init__(self, cap: Positive = 5.0):
        self.cap = cap

    def weight(self, at: Level) -> Tensor:
        return 2 * torch.clamp(self.cap * torch.exp(at.gamma), max=1.0) / at.dgamma


class TruncatedSNR(Loss):
    """Truncated SNR weighting (Salimans & Ho 2022, sec. 4): the x0 error times max(SNR, 1).

    w = 2 max(1, e^gamma) / gamma'(t): the larger of the squared errors in epsilon and in x0.
    """

    def weight(self, at: Level) -> Tensor:
        return 2 * torch.clamp(torch.exp(at.gamma), min=1.0) / at.dgamma


class Sigmoid(Loss):
    """Sigmoid weighting (Kingma & Gao 2023; Hoogeboom et al. 2024).

    w = sigmoid(bias - log SNR) = sigmoid(bias + gamma).
    """

    def __init__(self, bias: float = 2.0):
        self.bias = bias

    def weight(self, at: Level) -> Tensor:
        return torch.sigmoid(self.bias + at.gamma)


class EDM(Loss):
    """EDM's loss (Karras et al. 2022, table 1): a weighted x0 error over log-normal noise levels.

    E_sigma[lambda(sigma) |x0 error|^2] with ln sigma ~ N(mean, std^2). With the paper's sigma =
    e^{gamma / 2} and lambda = (sigma^2 + sd^2) / (sigma sd)^2 this is the squared error of F, so w
    = 2 q(gamma) (e^gamma + sd^2) / sd^2 with q = N(gamma; 2 mean, (2 std)^2). ``times=log_normal``
    with the same mean and std makes the loss of each draw equal to the paper's.

    Args:
        mean, std: the paper's P_mean and P_std.
        sigma_data: sd, the standard deviation of the data.
        monotonic: keep w at its maximum for all log SNR below that of the maximum (Kingma & Gao
            2023, "EDM-monotonic"); in continuous time the loss is then a bound of noisy data.
    """

    def __init__(
        self,
        mean: float = -1.2,
        std: Positive = 1.2,
        sigma_data: Positive = 0.5,
        monotonic: bool = False,
    ):
        self.over, self.sigma_data = LogNormal(mean, std), sigma_data
        self.peak = _weight_peak(2 * mean, 2 * std, sigma_data**2) if monotonic else math.inf

    def weight(self, at: Level) -> Tensor:
        gamma = at.gamma.clamp(max=self.peak)
        scale = 1 + torch.exp(gamma) / self.sigma_data**2
        return 2 * scale * at.averaged(self.over, self.peak)


class EDM2(EDM, nn.Module):
    r"""EDM's loss with a learned uncertainty u(sigma) (Karras et al. 2024, eqs. 14-16, 21).

    ``E_sigma[lambda(sigma) / e^u |x0 error|^2 + u]`` per dimension: at the optimum e^u is the error
    itself, so every level counts alike. The effective weight is that of EDM over e^u. u is linear
    in ``channels`` cosines of ln(sigma) / 4 with random frequencies, which are the same in each
    run.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(
        self,
        mean: float = -0.4,
        std: Positive = 1.0,
        sigma_data: Positive = 0.5,
        channels: Count = 128,
    ):
        nn.Module.__init__(self)
        super().__init__(mean, std, sigma_data)
        # Use a separate generator, so that networks get the same initial weights with any loss.
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", 2 * math.pi * torch.randn(channels, generator=generator))
        self.register_buffer("phase", 2 * math.pi * torch.rand(channels, generator=generator))
        self.row = nn.Parameter(torch.randn(channels, generator=generator))

    def uncertainty(self, gamma: Tensor) -> Tensor:
        """Return u at ``gamma``, of the same shape; only the direction of ``row`` matters."""
        waves = math.sqrt(2) * torch.cos(
            gamma.to(self.row).unsqueeze(-1) / 8 * self.frequency + self.phase
        )
        # Do not use a matrix product, which autocast would round to half precision.
        return (waves * (self.row / self.row.norm())).sum(-1)

    def weight(self, at: Level) -> Tensor:
        return super().weight(at) * torch.exp(-self.uncertainty(at.gamma))

    def nats(self, at: Level, squared: Tensor, dims: int) -> Tensor:
        # Normalize the row: the longer it is, the less a step changes it; see ``networks.edm2``.
        if self.training:
            self.row.data.div_(self.row.data.square().mean().sqrt())
        u = self.uncertainty(at.gamma)
        error = 0.5 * super().weight(at).to(squared) * squared * torch.exp(-u)
        return at.dgamma.to(squared) * (error + at.averaged(self.over).to(squared) * dims * u)


def _weight_peak(mean: float, std: float, variance: float) -> float:
    """Return the gamma that maximises N(gamma; mean, std^2) (e^gamma + variance).

    It is a root of gamma = mean + std^2 sigmoid(gamma - log variance), found by iteration from both
    sides; of two maxima the higher one is returned.
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
