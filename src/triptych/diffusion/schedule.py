r"""Noise schedules: gamma(t) on t in [0, 1], its derivative and its inverse, all in closed form.

Every schedule runs between the same two endpoints, ``gamma(0) = gamma_min`` and
``gamma(1) = gamma_max``: a named shape is a curve ``g(u)``, and the schedule is that curve on the stretch
``u in [u(gamma_min), u(gamma_max)]``, travelled at constant speed. So "cosine against linear" compares
shapes and not endpoints, which is what VDM's invariance (Kingma et al. 2021, sec. 5.1) is about: the
continuous-time bound depends on the endpoints alone, its estimator's variance on the shape.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from triptych.declare import Ge, Le, Positive, Unit, declared

Gamma = Annotated[float, Ge(-50), Le(50), Unit("-log SNR")]  # float32 ends at e^88


@declared("schedule")
class Schedule(nn.Module, ABC):
    """A curve gamma(t) from ``gamma_min`` (data, t = 0) to ``gamma_max`` (noise, t = 1).

    Subclasses give the shape: ``_curve(u)`` g, ``_slope(u)`` g' and ``_inverse(gamma)``, of any shape.

    Attributes:
        denoised: whether samples end with the denoiser's guess at z_0, in place of z_0 / alpha_0.
    """

    denoised = False

    def __init__(self, gamma_min: Gamma, gamma_max: Gamma):
        super().__init__()
        if gamma_min >= gamma_max:
            pair = f"schedule.gamma_min={gamma_min} and schedule.gamma_max={gamma_max}"
            raise ValueError(f"{pair}: must be gamma_min < gamma_max")
        self.gamma_min, self.gamma_max = float(gamma_min), float(gamma_max)
        ends = self._inverse(torch.tensor([gamma_min, gamma_max], dtype=torch.float64)).tolist()
        self._start, self._length = ends[0], ends[1] - ends[0]

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma = -log SNR at t, any shape, t in [0, 1]."""
        return self._curve(self._start + self._length * t)

    def dgamma(self, t: Tensor) -> Tensor:
        """Return d gamma / d t, analytic, any shape."""
        return self._length * self._slope(self._start + self._length * t)

    def t_of(self, gamma: Tensor) -> Tensor:
        """Return the time at which the schedule passes ``gamma``."""
        return (self._inverse(gamma) - self._start) / self._length

    def ends(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return gamma(0) and gamma(1), (2,)."""
        return self.gamma(torch.tensor([0.0, 1.0], device=device, dtype=dtype))

    def stops(self, steps: int) -> Tensor:
        """Return a sampler's times on a grid of time, from 1 down; the guess at z_0 is a step, too."""
        return torch.linspace(1.0, 0.0, steps + (not self.denoised))

    @abstractmethod
    def _curve(self, u: Tensor) -> Tensor:
        """Return g(u)."""

    @abstractmethod
    def _slope(self, u: Tensor) -> Tensor:
        """Return g'(u)."""

    @abstractmethod
    def _inverse(self, gamma: Tensor) -> Tensor:
        """Return the u of g(u) = gamma."""


class Linear(Schedule):
    """gamma linear in t (VDM, Kingma et al. 2021): equal steps of log SNR."""

    def _curve(self, u: Tensor) -> Tensor:
        return u

    def _slope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def _inverse(self, gamma: Tensor) -> Tensor:
        return gamma


class Symmetric(Schedule):
    """A curve g(u) = h(u) - h(1 - u), which keeps its digits at both ends: 1 - u is formed of 1 - t.

    At gamma = 50 1 - u is 1e-11 to 1e-21, where a float32 u near 1 ends at 6e-8. ``_curve`` is h, ``_slope``
    h', and ``_inverse`` that of g, with 1 - u at -gamma.
    """

    def __init__(self, gamma_min: float, gamma_max: float):
        super().__init__(gamma_min, gamma_max)
        rest, most = self._inverse(torch.tensor([-self.gamma_max, -self.gamma_min]).double()).tolist()
        self._rest = rest  # 1 - u at t = 1
        if self._start > 0.5:
            self._length = most - rest

    def _sides(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._start + self._length * t, self._rest + self._length * (1 - t)

    def gamma(self, t: Tensor) -> Tensor:
        u, rest = self._sides(t)
        return self._curve(u) - self._curve(rest)

    def dgamma(self, t: Tensor) -> Tensor:
        u, rest = self._sides(t)
        return self._length * (self._slope(u) + self._slope(rest))

    def t_of(self, gamma: Tensor) -> Tensor:
        low = (self._inverse(gamma) - self._start) / self._length
        high = 1 - (self._inverse(-gamma) - self._rest) / self._length
        return torch.where(gamma < 0, low, high)


class Cosine(Symmetric):
    """alpha = cos(pi u / 2) (Nichol & Dhariwal 2021): gamma = 2 log tan(pi u / 2)."""

    def _curve(self, u: Tensor) -> Tensor:
        return 2 * torch.log(torch.sin(u * (math.pi / 2)))

    def _slope(self, u: Tensor) -> Tensor:
        return math.pi / torch.tan(u * (math.pi / 2))

    def _inverse(self, gamma: Tensor) -> Tensor:
        return torch.atan(torch.exp(gamma / 2)) * (2 / math.pi)


class Straight(Symmetric):
    """sigma / alpha = u / (1 - u), so gamma = 2 logit u: the straight path's own time.

    With ``process=rectified`` alpha = 1 - u and sigma = u, whose times are uniform in flow matching (Lipman
    et al. 2023; Liu et al. 2023; Ma et al. 2024, SiT's linear path).
    """

    def _curve(self, u: Tensor) -> Tensor:
        return 2 * torch.log(u)

    def _slope(self, u: Tensor) -> Tensor:
        return 2 / u

    def _inverse(self, gamma: Tensor) -> Tensor:
        return torch.sigmoid(gamma / 2)


class BetaLinear(Schedule):
    """DDPM's linear beta in continuous time (Song et al. 2021, VP): alpha^2 = exp(-B(u)).

    B(u) = beta_min u + (beta_max - beta_min) u^2 / 2, so gamma = log(exp(B) - 1).
    """

    def __init__(
        self, gamma_min: float, gamma_max: float, beta_min: Positive = 0.1, beta_max: Positive = 20.0
    ):
        if beta_min >= beta_max:
            pair = f"schedule.beta_min={beta_min} and schedule.beta_max={beta_max}"
            raise ValueError(f"{pair}: must be beta_min < beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__(gamma_min, gamma_max)

    def _integral(self, u: Tensor) -> Tensor:
        return u * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * u)

    def _curve(self, u: Tensor) -> Tensor:
        b = self._integral(u)
        return b + torch.log(-torch.expm1(-b))

    def _slope(self, u: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * u
        return beta / -torch.expm1(-self._integral(u))

    def _inverse(self, gamma: Tensor) -> Tensor:
        b = torch.nn.functional.softplus(gamma, threshold=60.0)
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b)
        return 2 * b / (self.beta_min + root)


class Sigmoid(Symmetric):
    r"""alpha^2 a rescaled sigmoid of time (Jabri et al. 2023; Chen 2023), symmetric about u = 1/2.

    With start -s, end s and temperature tau, their ratio of sigmoid differences is exactly
    gamma = log sinh(k u) - log sinh(k (1 - u)), k = s / tau (3 in the papers).
    """

    def __init__(self, gamma_min: float, gamma_max: float, sharpness: Positive = 3.0):
        self.sharpness = sharpness
        super().__init__(gamma_min, gamma_max)

    def _curve(self, u: Tensor) -> Tensor:
        k = self.sharpness
        return k * u + torch.log(-torch.expm1(-2 * k * u))  # log sinh(k u) + log 2, which does not overflow

    def _slope(self, u: Tensor) -> Tensor:
        return self.sharpness / torch.tanh(self.sharpness * u)

    def _inverse(self, gamma: Tensor) -> Tensor:
        # tanh(k u) = sinh k / (exp(-g) + cosh k), solved without the atanh, which loses u near 1
        k, softplus = self.sharpness, torch.nn.functional.softplus
        return (softplus(gamma + k, threshold=60.0) - softplus(gamma - k, threshold=60.0)) / (2 * k)
