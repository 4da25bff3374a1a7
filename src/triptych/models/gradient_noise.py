"""How noisy a training step's gradient is, beside the gradient itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.data.batch import Batch
from triptych.declare import Count, declared
from triptych.models.diffusion import Diffusion
from triptych.models.metric import check_diffuses_data


@declared("metrics")
class GradientNoise(Metric):
    r"""B = tr(Sigma) / |G|^2, the gradient noise scale of McCandlish et al. 2018 (section 2.2).

    Nichol & Dhariwal 2021 compare their losses by it (section 3.3).

    G is the gradient of the run's loss with respect to the network's weights, Sigma the covariance of one
    item's, both over items, times and noise. From M batches of b items, with the gradients g_m, their mean g
    and s^2 = sum |g_m - g|^2 / (M - 1):

        tr(Sigma) = b s^2,   |G|^2 = |g|^2 - s^2 / M,

    each without bias, their ratio nearly. In items: about as many as a batch may have before a larger one
    is no better. An item's time is drawn as in training, but on its own, also where a batch's are spread
    evenly. What a batch holds depends on the test's batches and processes, and so does the figure, within its
    noise. Nothing is trained or remembered: weights and the times' history stay. ``compute`` gives NaN where
    noise alone explains the gradients.

    Args:
        batch: b; items beyond a multiple of it are left out.
        draws: of times and noise, an item.
    """

    full_state_update = False
    higher_is_better = False
    gradient: Tensor
    sums: Tensor

    def __init__(self, batch: Count = 16, draws: Count = 16):
        super().__init__()
        self.batch, self.draws = batch, draws
        self.add_state("gradient", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # M, sum |g_m|^2

    check = staticmethod(check_diffuses_data)

    def update(self, model: Diffusion, batch: Batch) -> None:
        """Count the gradients of as many batches of ``batch`` items as there are."""
        weights = [p for network in model.networks() for p in network.parameters() if p.requires_grad]
        if not weights:
            raise ValueError("metrics: gradient_noise is of a network's weights, and this model trains none")
        starts = range(0, len(batch.x) - self.batch + 1, self.batch)
        for start in [*starts] * self.draws:
            with torch.inference_mode(False), torch.enable_grad():
                loss = self._loss(model, batch, slice(start, start + self.batch))
                found = torch.autograd.grad(loss, weights, allow_unused=True)
            self.count(torch.cat([g.flatten() for g in found if g is not None]))

    def count(self, gradient: Tensor) -> None:
        """One batch's gradient, flat."""
        found = gradient.detach().double()
        self.gradient = self.gradient + found
        self.sums += torch.stack([torch.ones_like(self.sums[0]), found.square().sum()])

    def compute(self) -> float:
        """B, in items."""
        n, squares = self.sums.tolist()
        if n < 2:
            return math.nan
        mean = (self.gradient / n).square().sum().item()
        spread = (squares - n * mean) / (n - 1)
        signal = mean - spread / n
        return self.batch * spread / signal if signal > 0 else math.nan

    def _loss(self, model: Diffusion, batch: Batch, part: slice) -> Tensor:
        """The mean loss of some items, nats per dimension."""
        x = batch.x[part].clone()  # of inference mode, which knows no gradients
        eps, u = torch.randn_like(x), torch.rand(len(x), device=x.device)
        with torch.no_grad():
            t, density = model.times(u, model.schedule)
        told = model.told(batch)
        told = None if told is None else told[part].map(torch.clone)
        nats = model.objective(model.denoiser, model.schedule, x, t, eps, told).nats
        return (nats if density is None else nats / density).mean() / model.dims
