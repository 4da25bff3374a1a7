"""Measure the noise of a training step's gradient, relative to the gradient itself."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from triptych.data.batch import Batch
from triptych.declare import Count, declared
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion
from triptych.models.metric import check_diffuses_data


@declared("metrics")
class GradientNoise(Metric):
    r"""B = tr(Sigma) / |G|^2, the gradient noise scale of McCandlish et al. 2018 (section 2.2).

    Nichol & Dhariwal 2021 compare their losses by it (section 3.3).

    G is the mean gradient of the run's loss with respect to the network's weights, Sigma the
    covariance of one item's gradient, both over items, times and noise. J groups of b items have
    the gradients g_jk of K draws of times and noise each. Draws of one group share its items, so
    only groups are independent. With a group's mean g_j, the mean g of these, and, as in an
    analysis of variance,

        between = sum_j |g_j - g|^2 / (J - 1),   within = sum_jk |g_jk - g_j|^2 / (J (K - 1)),

        tr(Sigma) = b (between + (1 - 1 / K) within),   |G|^2 = |g|^2 - between / J,

    both unbiased. With K = 1 there is no ``within``, as in their appendix A.1. ``compute`` returns
    their ratio, in items, or NaN if noise alone explains the gradients. The median of the ratio
    over repeated estimates is close to B; its mean is above B. An item's time is drawn as in
    training, but independently of other items. Which items form a group depends on the test's
    batches and processes.

    Args:
        batch: b, items per group; items beyond a multiple of it are left out.
        draws: K, random draws of times and noise per item.
    """

    full_state_update = False
    higher_is_better = False
    gradient: Tensor
    sums: Tensor

    def __init__(self, batch: Count = 16, draws: Count = 16):
        super().__init__()
        self.batch, self.draws = batch, draws
        self.add_state("gradient", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        # [J, sum_j |g_j|^2, sum_jk |g_jk|^2 / K]
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def check(self, model: Diffusion) -> None:
        """Raise UserError if the model has no trained denoiser."""
        check_diffuses_data(model)
        if not _weights(model):
            raise UserError("this model trains no network; remove the metric")

    def update(self, model: Diffusion, batch: Batch) -> None:
        """Add the gradients of groups of ``self.batch`` items; leave out a smaller last group."""
        weights = _weights(model)
        for start in range(0, len(batch.x) - self.batch + 1, self.batch):
            self.add_group(self._gradient(model, batch, start, weights) for _ in range(self.draws))

    def add_group(self, gradients: Iterable[Tensor]) -> None:
        """Add one group to the sums; ``gradients`` are those of its ``draws`` draws, each flat."""
        total, squares = torch.zeros_like(self.gradient), torch.zeros_like(self.sums[0])
        for gradient in gradients:
            total = total + gradient.double()
            squares += gradient.double().square().sum()
        mean = total / self.draws
        self.gradient = self.gradient + mean
        self.sums += torch.stack(
            [torch.ones_like(squares), mean.square().sum(), squares / self.draws]
        )

    def compute(self) -> float:
        groups, of_means, of_draws = self.sums.tolist()
        if groups < 2:
            return math.nan
        mean = (self.gradient / groups).square().sum().item()
        between = (of_means - groups * mean) / (groups - 1)
        within = (of_draws - of_means) / groups  # this includes the factor 1 - 1 / K
        signal = mean - between / groups
        return self.batch * (between + within) / signal if signal > 0 else math.nan

    def _gradient(
        self, model: Diffusion, batch: Batch, start: int, weights: list[nn.Parameter]
    ) -> Tensor:
        """Return the flat gradient of a group's mean loss, nats per dimension.

        The group begins at the batch's item ``start``.
        """
        part = slice(start, start + self.batch)
        with torch.inference_mode(False), torch.enable_grad():
            x = batch.x[part].clone()  # copy it, as tensors of inference mode have no gradients
            eps, u = torch.randn_like(x), torch.rand(len(x), device=x.device)
            with torch.no_grad():
                t, density = model.times(u, model.schedule)
            condition = model.condition_of(batch)
            if condition is not None:
                condition = condition[part].map(torch.clone)
            model.denoiser.output.train()  # outputs are clipped only in evaluation mode
            nats = model.objective(model.denoiser, model.schedule, x, t, eps, condition).nats
            model.denoiser.output.eval()
            if density is not None:
                nats = nats / density
            loss = nats.mean() / model.dims
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None]).detach()


def _weights(model: Diffusion) -> list[nn.Parameter]:
    """Return the trainable weights of the model's networks."""
    networks = nn.ModuleList(model.networks())
    return [p for p in networks.parameters() if p.requires_grad]
