"""A diffusion model under training: one objective to minimise, one bound to report."""

import time
from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from triptych.data.base import Batch
from triptych.diffusion.bound import Bound, Elbo
from triptych.diffusion.denoiser import Denoiser
from triptych.diffusion.draws import evaluation_draw, mix, training_draw
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.objective import Objective
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.accounting import Accounting

LEVEL_BINS = 20


class Diffusion(pl.LightningModule):
    """Trains ``objective`` on ``denoiser``, reports ``bound``.

    Args:
        denoiser, schedule, objective, bound: the mathematics.
        optimizer: parameters -> optimiser.
        lr_schedule: has ``factor(step, max_steps)``.
        shape: event shape of the data; ``discrete``: whether it has levels (bits/dim) or a density (nats/dim).
        seed: of times, noise and dropout; evaluation noise follows from it too.
        repeats: draws of the bound per item; ``val_repeats`` in validation.
        conditional: whether the network is told the labels.
        mixture: the truth behind the data, where it is known.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        objective: Objective,
        bound: Bound,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        lr_schedule,
        *,
        shape: tuple[int, ...],
        discrete: bool,
        seed: int,
        repeats: int,
        val_repeats: int,
        conditional: bool = False,
        mixture: GaussianMixture | None = None,
    ):
        super().__init__()
        self.denoiser, self.schedule = denoiser, schedule
        self.objective, self.bound = objective, bound
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.shape, self.seed, self.conditional = shape, seed, conditional
        self.repeats, self.val_repeats = repeats, val_repeats
        self.truth = [mixture] if mixture is not None else []  # in a list: it is data, not part of the model
        self.dims = int(torch.Size(shape).numel())
        edges = schedule.gamma(torch.tensor([0.0, 1.0]))
        edges = torch.linspace(edges[0].item(), edges[1].item(), LEVEL_BINS + 1)
        self.accounting = Accounting(self.dims, discrete, edges)
        self.split = "val"  # what the accounting is about; set by whoever starts a test
        self.config: dict = {}  # the resolved configuration, kept in each checkpoint
        self._clock = (0, time.perf_counter())

    # training ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss in weighted nats per dimension."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        rank, world = self.global_rank, self.trainer.world_size
        t, eps = training_draw(self.shape, len(batch.x) * world, self.seed, step, rank, world)
        torch.manual_seed(mix(self.seed, 5, step, rank))  # dropout follows from the step too
        loss = self.objective(
            self.denoiser, self.schedule, batch.x, t.to(self.device), eps.to(self.device), self._condition(batch)
        )
        mean = loss.nats.mean() / self.dims
        if self._logs_now:
            self._log_step(mean, loss.nats.detach(), len(batch.x) * world)
        return mean

    @property
    def _logs_now(self) -> bool:
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def _log_step(self, mean: Tensor, nats: Tensor, batch: int) -> None:
        step, then = self._clock
        now = time.perf_counter()
        self._clock = (self.global_step, now)
        figures = {
            "train/loss": mean.detach(),
            "train/loss_variance": nats.div(self.dims).var(),
            "train/lr": torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"]),
        }
        if self.global_step > step:
            figures["train/images_per_second"] = torch.tensor(batch * (self.global_step - step) / (now - then))
        self.log_dict(figures, on_step=True, on_epoch=False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._logs_now:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", nn.utils.get_total_norm(grads), on_step=True, on_epoch=False)

    def configure_optimizers(self) -> dict:
        try:
            optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from error
        steps = self.trainer.max_steps
        factor = LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["triptych"] = {"schema": 1, "config": self.config}

    # the accounting ---------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._account(batch, self.val_repeats)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._account(batch, self.repeats)

    def _account(self, batch: Batch, repeats: int) -> None:
        """Average each item's bound over its draws, then count it once."""
        drawn: list[Elbo] = []
        for repeat in range(repeats):
            draw = evaluation_draw(self.shape, batch.index.cpu(), self.seed, repeat, repeats)
            draw = type(draw)(*(part.to(self.device) for part in draw))
            elbo, term = self.bound.terms(self.denoiser, batch.x, draw, self._condition(batch))
            self.accounting.update_levels(term.gamma, term.squared_error)
            drawn.append(elbo)
        mean = Elbo(
            *(torch.stack([getattr(e, f) for e in drawn]).double().mean(0) for f in ("prior", "reconstruction", "diffusion"))
        )
        exact = -self.truth[0].to(batch.x.device).log_prob(batch.x.double()) if self.truth else None
        self.accounting.update(mean, exact)

    def on_validation_epoch_start(self) -> None:
        self.accounting.reset()

    def on_test_epoch_start(self) -> None:
        self.accounting.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_accounting("val/")

    def on_test_epoch_end(self) -> None:
        self._log_accounting("test/" if self.split == "test" else f"final/{self.split}_")

    def _log_accounting(self, prefix: str) -> None:
        found = self.accounting.compute()
        figures = {prefix + name: figure["mean"] for name, figure in found.items()}
        # computed over all processes already, so each logs the same; "step" sets the row they stand in
        self.log_dict(figures | {"step": float(self.trainer.global_step)})

    def _condition(self, batch: Batch) -> Tensor | None:
        return batch.condition if self.conditional else None
