r"""Noise schedules: gamma(t) on t in [0, 1], its derivative and its inverse, in closed form.

Every schedule runs between the same two endpoints, ``gamma(0) = gamma_min`` and ``gamma(1) =
gamma_max``. A named shape is a curve ``g(u)``, and the schedule is the part of that curve with ``u
in [u(gamma_min), u(gamma_max)]``, where u is linear in t. "Cosine against linear" therefore
compares shapes and not endpoints. This is the setting of VDM's invariance (Kingma et al. 2021, sec.
5.1): the continuous-time bound depends on the endpoints alone, the variance of its estimator on the
shape.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor, nn

from triptych.declare import Ge, Le, Positive, Unit, declared

Gamma = Annotated[float, Ge(-50), Le(50), Unit("-log SNR")]  # e^88 is the limit of float32


@declared("schedule")
class Schedule(nn.Module, ABC):
    """A curve gamma(t) from ``gamma_min`` (data, t = 0) to ``gamma_max`` (noise, t = 1).

    Subclasses give the shape, for tensors of any shape: ``_curve(u)`` is g, ``_slope(u)`` its
    derivative g' and ``_inverse(gamma)`` its inverse.

    Attributes:
        denoised: whether samples end with the denoiser's prediction at z_0, in place of z_0 /
            alpha_0.
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
        """Return gamma = -log SNR at t in [0, 1], any shape."""
        return self._curve(self._start + self._length * t)

    def dgamma(self, t: Tensor) -> Tensor:
        """Return the derivative d gamma / d t in closed form, any shape."""
        return self._length * self._slope(self._start + self._length * t)

    def t_of(self, gamma: Tensor) -> Tensor:
        """Return the time at which the schedule reaches ``gamma``."""
        return (self._inverse(gamma) - self._start) / self._length

    def ends(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return gamma(0) and gamma(1), (2,)."""
        # torch.tensor([0.0, 1.0]) would wait for a GPU, to which it copies the numbers.
        return self.gamma(torch.arange(2, device=device, dtype=dtype))

    def stops(self, steps: int) -> Tensor:
        """Return the times of a sampler with ``steps`` steps, evenly spaced from 1 down to 0.

        If ``denoised``, the prediction at z_0 is one of the steps.
        """
        return torch.linspace(1.0, 0.0, steps + (not self.denoised))

    @abstractmethod
    def _curve(self, u: Tensor) -> Tensor:
        """Return g(u)."""

    @abstractmethod
    def _slope(self, u: Tensor) -> Tensor:
        """Return g'(u)."""

    @abstractmethod
    def _inverse(self, gamma: Tensor) -> Tensor:
        """Return u with g(u) = gamma."""


class Linear(Schedule):
    """Linear schedule: equal steps of log SNR (VDM, Kingma et al. 2021)."""

    def _curve(self, u: Tensor) -> Tensor:
        return u

    def _slope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def _inverse(self, gamma: Tensor) -> Tensor:
        return gamma


class Symmetric(Schedule):
    """A curve g(u) = h(u) - h(1 - u) that is accurate at both ends.

    1 - u is computed from 1 - t: at gamma = 50, 1 - u is 1e-11 to 1e-21, while float32 resolves u
    near 1 only to 6e-8. ``_curve`` is h and ``_slope`` is h'. ``_inverse`` is that of g; at -gamma
    it gives 1 - u.
    """

    def __init__(self, gamma_min: float, gamma_max: float):
        super().__init__(gamma_min, gamma_max)
        rest, most = self._inverse(
            torch.tensor([-self.gamma_max, -self.gamma_min]).double()
        ).tolist()
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
    """Cosine schedule (Nichol & Dhariwal 2021): alpha = cos(pi u / 2).

    gamma = 2 log tan(pi u / 2).
    """

    def _curve(self, u: Tensor) -> Tensor:
        return 2 * torch.log(torch.sin(u * (math.pi / 2)))

    def _slope(self, u: Tensor) -> Tensor:
        return math.pi / torch.tan(u * (math.pi / 2))

    def _inverse(self, gamma: Tensor) -> Tensor:
        return torch.atan(torch.exp(gamma / 2)) * (2 / math.pi)


class Straight(Symmetric):
    """Time of the straight path: sigma / alpha = u / (1 - u), so gamma = 2 logit u.

    With ``process=rectified``, alpha = 1 - u and sigma = u. Flow matching draws these times
    uniformly (Lipman et al. 2023; Liu et al. 2023; Ma et al. 2024, SiT's linear path).
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
        self,
        gamma_min: float,
        gamma_max: float,
        beta_min: Positive = 0.1,
        beta_max: Positive = 20.0,
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
    r"""Sigmoid schedule (Jabri et al. 2023; Chen 2023), symmetric about u = 1/2.

    alpha^2 is a rescaled sigmoid of time. With start -s, end s and temperature tau, the papers'
    ratio of sigmoid differences is exactly gamma = log sinh(k u) - log sinh(k (1 - u)), with k = s
    / tau (``sharpness``; 3 in the papers).
    """

    def __init__(self, gamma_min: float, gamma_max: float, sharpness: Positive = 3.0):
        self.sharpness = sharpness
        super().__init__(gamma_min, gamma_max)

    def _curve(self, u: Tensor) -> Tensor:
        k = self.sharpness
        # This is log sinh(k u) + log 2 in a form that does not overflow.
        return k * u + torch.log(-torch.expm1(-2 * k * u))

    def _slope(self, u: Tensor) -> Tensor:
        return self.sharpness / torch.tanh(self.sharpness * u)

    def _inverse(self, gamma: Tensor) -> Tensor:
        # Solves tanh(k u) = sinh k / (exp(-g) + cosh k) without atanh, which is inaccurate for u
        # near 1.
        k, softplus = self.sharpness, torch.nn.functional.softplus
        return (softplus(gamma + k, threshold=60.0) - softplus(gamma - k, threshold=60.0)) / (2 * k)
