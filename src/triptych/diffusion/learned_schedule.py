r"""Noise schedules with learned parameters (VDM, Kingma et al. 2021, app. I.2).

See also Luo 2022, "Learning Diffusion Noise Parameters". The continuous-time bound depends on a
schedule through its two endpoints alone; the shape between them changes only the *variance* of the
bound's one-sample estimate. The two are therefore trained differently: the endpoints minimise the
bound, prior and reconstruction included; the interior minimises E[L^2], which at a fixed mean is
the variance.

    gamma(t) = gamma_0 + (gamma_1 - gamma_0) s(t),   s(t) = (h(t) - h(0)) / (h(1) - h(0))

with h increasing. Both gamma and its slope are formulas: the forward pass needs no autograd, so
evaluation and torch.compile work. Use no weight decay for these parameters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from triptych.declare import Count, Positive

from .schedule import Linear
from .whole_batch import whole_batch


class LearnedEndpoints(Linear):
    """A linear schedule with learned endpoints: gamma = low + softplus(.) t always increases.

    Args:
        gamma_min, gamma_max: initial endpoints.
        pinned: keep the endpoints fixed.
        speed: factor on the learning rate of an endpoint in a step of Adam; endpoints have to move
            by nats where weights move by hundredths.
    """

    def __init__(
        self, gamma_min: float, gamma_max: float, pinned: bool = False, speed: Positive = 10.0
    ):
        super().__init__(gamma_min, gamma_max)
        self.pinned, self.speed = pinned, speed
        width = torch.tensor(gamma_max - gamma_min, dtype=torch.float64)
        raw = width + torch.log(-torch.expm1(-width))  # softplus(raw) = width
        self._raw_width = raw.item()
        self.low_shift = nn.Parameter(torch.zeros(()), requires_grad=not pinned)
        self.top_shift = nn.Parameter(torch.zeros(()), requires_grad=not pinned)

    @property
    def low(self) -> Tensor:
        return self.gamma_min + self.speed * self.low_shift

    @property
    def width(self) -> Tensor:
        return softplus(self._raw_width + self.speed * (self.top_shift - self.low_shift))

    def gamma(self, t: Tensor) -> Tensor:
        return self.low + self.width * self.interior(self._to_device(t))[0]

    def dgamma(self, t: Tensor) -> Tensor:
        return self.width * self.interior(self._to_device(t))[1]

    def interior(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the curve s(t), from s(0) = 0 to s(1) = 1, and its slope, each of t's shape."""
        return t, torch.ones_like(t)

    @torch.no_grad()
    def t_of(self, gamma: Tensor) -> Tensor:
        """Return the time at which the schedule reaches ``gamma``, without gradient.

        It is found by bisection to 2^-40.
        """
        target = ((self._to_device(gamma) - self.low) / self.width).double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(40):
            middle = 0.5 * (low + high)
            above = self.interior(middle)[0] > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (0.5 * (low + high)).to(gamma)

    def _to_device(self, t: Tensor) -> Tensor:
        return t.to(self.low_shift.device)


class Monotone(LearnedEndpoints):
    """VDM's monotone network (Kingma et al. 2021, app. H) between fixed or learned endpoints.

    h(t) = t + sum_k w_k sigmoid(r_k t - b_k) with w, r > 0 and ``hidden`` sigmoids; close to linear
    at first.
    """

    def __init__(
        self,
        gamma_min: float,
        gamma_max: float,
        pinned: bool = True,
        hidden: Count = 128,
        speed: float = 10.0,
    ):
        super().__init__(gamma_min, gamma_max, pinned, speed)
        rate = float(max(4, hidden // 2))
        self.log_weight = nn.Parameter(torch.full((hidden,), 1 / hidden).log())
        self.log_rate = nn.Parameter(torch.full((hidden,), rate).log())
        self.shift = nn.Parameter(rate * torch.linspace(0.0, 1.0, hidden))
        self._rescale: Callable[[Tensor], Tensor] | None = None  # a hook on gradients

    def interior(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ends, _ = self._network(torch.arange(2, dtype=t.dtype, device=t.device))
        rise = ends[1] - ends[0]
        h, slope = self._network(t)
        s, ds = (h - ends[0]) / rise, slope / rise
        if self._rescale is not None and t.ndim and s.requires_grad:
            s.register_hook(self._rescale)
            ds.register_hook(self._rescale)
        return s, ds

    def _network(self, t: Tensor) -> tuple[Tensor, Tensor]:  # returns h(t) and h'(t)
        weight, rate = self.log_weight.exp(), self.log_rate.exp()
        bump = torch.sigmoid(rate * t.unsqueeze(-1) - self.shift)
        return t + (weight * bump).sum(-1), 1 + (weight * rate * bump * (1 - bump)).sum(-1)

    @contextmanager
    def variance_descent(self) -> Iterator[Callable[[Tensor], None]]:
        """Train the schedule's interior, within the context, on E[L^2] / E[L] instead of E[L].

        VDM app. I.2: per sample d L_i^2 = 2 L_i d L_i, so the gradient with respect to s(t_i) and
        s'(t_i) is multiplied by 2 L_i / mean L, with the mean over all processes. Network and
        endpoints keep their own gradient in the same backward pass. The context yields a function:
        call it with the losses (B,) before that pass.
        """
        scale: Tensor | None = None

        def set_losses(nats: Tensor) -> None:  # in the same order as the times
            nonlocal scale
            scale = 2 * nats.detach() / whole_batch(nats).mean()

        def rescale(gradient: Tensor) -> Tensor:
            assert scale is not None  # set_losses() is called before backward()
            return (gradient * scale).to(gradient)

        self._rescale = rescale
        try:
            yield set_losses
        finally:
            self._rescale = None
