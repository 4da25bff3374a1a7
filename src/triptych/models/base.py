"""The base class of all models: each has one loss to minimise and one bound to report."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from triptych.data.batch import Batch
from triptych.data.order import EvalLoader
from triptych.declare import declared
from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.condition import AUGMENTATION, Condition, Kind
from triptych.diffusion.control import DrawError
from triptych.diffusion.draws import BATCH_DRAWS, BatchDraws, StepShare, Stream, hash_seed
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.protocol import AnyDenoiser
from triptych.diffusion.sampler.ancestral import Ancestral
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.accounting import Accounting, LoggingModule
from triptych.models.gradients import Gradients
from triptych.networks.conditioning import Conditioning

# Packages whose modules use all of their weights in each step, except ``Conditioning``.
KNOWN = ("triptych.", "torch.", "torchmetrics.")
LEVEL_BANDS = 5  # number of noise-level bands whose error is logged at validation


@declared("model")
class BoundModel(LoggingModule):
    """A LightningModule that trains on ``loss`` and reports ``elbo``; a subclass defines both.

    Args:
        optimizer: function of the parameters (or groups of them) that returns the optimiser.
        lr_schedule: an object with ``factor(step, max_steps)``, or a ``partial`` of a torch
            scheduler that still needs the optimiser.
        shape: event shape of the data.
        discrete: True: the data have levels (bits/dim); False: they have a density.
        seed: seed of noise and dropout in training, and of the noise in evaluation.
        repeats, val_repeats: random draws of the bound per item, in test and in validation.
        conditional: whether the network reads the conditions; or the names of the condition parts
            that it reads.
        mixture: the true density of the data, if it is known.
        edges: gammas at the edges of the noise-level bins, for models with noise levels.
        extras: names of the metrics that ``extra_metrics`` returns, such as "kl_1".
    """

    def __init__(
        self,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        lr_schedule: Any,
        *,
        shape: tuple[int, ...],
        discrete: bool,
        seed: int,
        repeats: int,
        val_repeats: int,
        conditional: bool | Sequence[str] = False,
        mixture: GaussianMixture | None = None,
        edges: Tensor | None = None,
        extras: Iterable[str] = (),
    ):
        super().__init__()
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.shape, self.seed, self.conditional = shape, seed, conditional
        self.repeats, self.val_repeats = repeats, val_repeats
        self.random: BatchDraws = BATCH_DRAWS  # a run sets it by its key ``draws``
        # Use a list to hide the mixture from nn.Module, as it is data and not a submodule.
        self.truth = [mixture] if mixture is not None else []
        self.dims = int(torch.Size(shape).numel())
        # A subclass may replace the accounting.
        self.accounting: Any = Accounting(self.dims, discrete, edges, tuple(extras))
        self._levels = edges  # fixed, so that the bands of noise levels do not change in training
        self.denoiser: AnyDenoiser | None = None  # a diffusion model has one
        self.schedule: Schedule | None = None  # a model without noise levels has none
        self.likelihood: Likelihood | None = (
            None  # the likelihood by the probability-flow ODE, if it is evaluated too
        )
        self._clock = (0, time.perf_counter())

    can_sample = True  # whether samples can be drawn from the model
    uses_sampler = True  # whether the configured sampler draws them
    of_latents = False  # whether the denoiser acts on latents that the model learns
    # Probability that an item trains without its condition, or {part of the condition:
    # probability}.
    label_dropout: float | Mapping[str, float] = 1.0
    _is_prepared = False  # whether the current test has prepared the model for evaluation
    ignores: tuple[str, ...] = ()  # config groups that the model never reads
    # What a subclass defines ----------------------------------------------------------------------

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        """Return the loss of one training step, nats (B,).

        Its noise follows from the seed and the step.
        """
        raise NotImplementedError("loss() is not defined")

    def elbo(self, batch: Batch, repeat: int, repeats: int) -> BoundTerms:
        """Estimate each term of the bound, nats (B,), from one random draw per item.

        Its noise follows from (seed, item's index, repeat).
        """
        raise NotImplementedError("elbo() is not defined")

    def try_components(self, batch: Batch) -> None:
        """Raise UserError if a user-supplied component returns an invalid output for ``batch``."""

    def check_sampler(self, sampler: Any) -> None:
        """Raise UserError if this model cannot use ``sampler``; the default is always allowed."""
        if not ((self.can_sample and self.uses_sampler) or isinstance(sampler, Ancestral)):
            name = type(sampler).__name__
            raise UserError(
                f"sampler: {type(self).__name__} cannot use {name}; leave out the key sampler"
            )

    def sample(
        self,
        n: int,
        sampler: Any,
        generator: torch.Generator,
        condition: Condition | None = None,
        progress: Any = iter,
    ) -> Tensor:
        """Draw n samples (n, *shape) in data units; some models ignore ``sampler``."""
        raise NotImplementedError

    def extra_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return the metrics beside the bound of a test batch, {name in ``extras``: nats (B,)}."""
        return {}

    def gap(self, batch: Batch, repeat: int, repeats: int) -> Tensor | None:
        """Estimate how far the bound exceeds the exact -log p(x), nats (B,).

        The estimate has less noise than the difference of the two. Return None if there is none.
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups, each a dictionary with its own options."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def may_skip_weights(self) -> bool:
        """Return whether some trained weight may have no gradient after a training step."""
        for module in self.modules():
            if not type(module).__module__.startswith(KNOWN):
                return True
            if isinstance(module, Conditioning) and not all(map(self._may_lack, module.with_null)):
                return True
        return False

    def _may_lack(self, part: str) -> bool:
        """Return whether some training items may have no value for this part of the condition."""
        if part == AUGMENTATION:  # Items that are not augmented lack it.
            return True
        if isinstance(self.label_dropout, Mapping):
            return self.label_dropout.get(part, 0.0) > 0
        return self.label_dropout > 0

    def train_figures(self) -> dict[str, Tensor]:
        """Return training metrics that a subclass logs beside its loss, by name."""
        return {}

    def panels(self) -> dict[str, Any]:
        """Return the data of a subclass's plots, by name, as plain lists for ``summary.json``."""
        return {}

    def artifacts(self) -> dict[str, Any]:
        """Return files to save in the run's directory: {file name: plain data}."""
        return {}

    def networks(self) -> list[nn.Module]:
        """Return the modules that ``compile=true`` compiles."""
        return []

    def on_train_start(self) -> None:
        self._clock = (self.global_step, time.perf_counter())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        rank, world = self.global_rank, self.trainer.world_size
        # Seed dropout from the step, too. Do not use torch.manual_seed, which takes half a
        # millisecond to format the call stack.
        seed = hash_seed(self.seed, Stream.DROPOUT, step, rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type in ("cuda", "mps"):
            torch.get_device_module(self.device).manual_seed(seed)
        nats = self.loss(batch, step, rank, world)
        mean = nats.mean() / self.dims
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it
        if (self.global_step + 1) % every == 0:
            images = len(batch.x) * world * self.trainer.accumulate_grad_batches  # images per step
            self._log_step(mean, nats.detach(), images)
        return mean

    def step_share(self, batch: int, step: int, rank: int, world: int) -> StepShare:
        """Return which of a training step's random draws this process uses, for ``batch`` items."""
        return StepShare(batch * world, self.seed, step, rank, world, self.device)

    def _log_step(self, mean: Tensor, nats: Tensor, images: int) -> None:
        """Log the loss of a step, its variance over items, learning rate and images per second."""
        step, then = self._clock
        now = time.perf_counter()
        # Lightning puts plain numbers on the device, where NCCL can reduce them.
        figures: dict[str, Any] = {
            "train/loss": mean.detach(),
            "train/loss_variance": nats.div(self.dims).var(),
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        steps = self.global_step - step
        if steps > 0:  # with gradient accumulation several batches have the same step
            self._clock = (self.global_step, now)
            figures["train/images_per_second"] = images * steps / (now - then)
        figures |= {f"train/{name}": value.detach() for name, value in self.train_figures().items()}
        # Only logged steps are reduced over processes.
        self.log_model_metrics(figures, on_step=True, on_epoch=False, sync_dist=True)

    def configure_optimizers(self) -> Any:
        options = {}
        fused = isinstance(self.optimizer, partial) and self.optimizer.keywords.get("fused")
        if fused and not self._allows_fused_step():
            options["fused"] = False
        optimizer = self.optimizer(self.parameter_groups(), **options)
        steps = self.trainer.max_steps
        if isinstance(self.lr_schedule, partial):  # a scheduler of torch, stepped once per step
            factor: LRScheduler = self.lr_schedule(optimizer)
        else:
            factor = LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def _allows_fused_step(self) -> bool:
        """Return whether the optimiser may be fused, given the trainer's precision and clipping.

        With float16 a fused optimiser unscales the gradients within its step, so a norm computed
        before the step would be wrong. bfloat16 gradients are not scaled, but Lightning refuses to
        clip them with a fused optimiser, too.
        """
        precision = str(self.trainer.precision)
        if precision == "bf16-mixed":
            return not self.trainer.gradient_clip_val
        return precision != "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning would compute the norm that ``Gradients`` logs a second time.
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
            if isinstance(callback, Gradients) and callback.clip_by_norm(self, optimizer):
                return
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Convert the Counter in ``MultiStepLR``, as a checkpoint may contain only plain data.
        for state in checkpoint.get("lr_schedulers", ()):
            if isinstance(state.get("milestones"), Counter):
                state["milestones"] = dict(state["milestones"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.eval()  # a callback's hook may have changed the mode
        with self._full_precision():
            self._evaluate_batch(batch, self.val_repeats, {})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.eval()
        with self._full_precision():
            self._evaluate_batch(batch, self.repeats, self.extra_metrics(batch), report=True)

    def _full_precision(self) -> AbstractContextManager[Any]:
        """Return a context without autocast."""
        # Use mixed precision only in training, so that the bounds of all runs are comparable.
        kind = self.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
        return nullcontext()

    def _evaluate_batch(
        self, batch: Batch, repeats: int, extra_metrics: dict[str, Tensor], report: bool = False
    ) -> None:
        """Add the bound of a batch, averaged over ``repeats`` random draws, to the accounting."""
        # Average the bound of each item over its draws, and count the item once.
        draws = [self.elbo(batch, repeat, repeats) for repeat in range(repeats)]
        mean = BoundTerms(*map(_mean_over_draws, zip(*draws, strict=True)))
        exact, gap = None, None
        if self.truth and not self.conditional:  # the known density is unconditional
            exact = -self.truth[0].log_prob(batch.x.double())
            gap = self._mean_gap(batch, repeats)
        if "ode" in extra_metrics:  # also report the bound of the items whose ODE was solved
            unsolved = extra_metrics["ode"].isnan()
            extra_metrics["ode_bound"] = torch.where(unsolved, torch.nan, mean.total)
        error = None
        if report:
            totals = torch.stack([terms.total for terms in draws])
            error = self.draw_error(batch, totals.double())
        self.accounting.update(mean, exact, gap, extra_metrics, batch.index, error)

    def _mean_gap(self, batch: Batch, repeats: int) -> Tensor | None:
        """Return the mean of ``gap`` over random draws, nats (B,); None if there is no estimate."""
        draws = [self.gap(batch, repeat, repeats) for repeat in range(repeats)]
        return None if draws[0] is None else _mean_over_draws(draws)

    def draw_error(self, batch: Batch, totals: Tensor) -> DrawError:
        """Return the error of each item's mean over R independent draws; NaN for one draw.

        ``totals`` (R, B): the bound of each draw and item.
        """
        no_quadrature = torch.zeros_like(totals[0])
        if len(totals) < 2:
            return DrawError(no_quadrature + torch.nan, no_quadrature)
        return DrawError(totals.var(0) / len(totals), no_quadrature)

    def on_validation_epoch_start(self) -> None:
        self.before_accounting()
        self.accounting.reset()

    def on_test_epoch_start(self) -> None:
        if not self._is_prepared:  # once is enough for the same weights
            self.before_accounting()
            self.before_report()
        self._is_prepared = True
        self.accounting.expect(self.test_loader.items)

    @property
    def test_loader(self) -> EvalLoader:
        """The data loader of the current test; it has the split's name and number of items."""
        return self.trainer.test_dataloaders  # type: ignore[return-value]  # always an EvalLoader

    def before_accounting(self) -> None:
        """Prepare the bound for the current weights; for example, measure the reverse variance."""

    def before_report(self) -> None:
        """Prepare the final evaluation of a run; for example, fit what reduces its noise."""

    def on_validation_epoch_end(self) -> None:
        account = self.accounting.compute()
        figures = {f"val/{name}": figure["mean"] for name, figure in account.figures.items()}
        bound = account.figures[account.unit]  # log the bound under one name, whatever its unit
        figures |= {"val/bound": bound["mean"], "val/bound_stderr": bound["stderr"]}
        figures |= self._level_figures(account.noise_levels)
        # The values are already averaged over all processes, so each process logs the same. "step"
        # sets the x axis of loggers.
        self.log_model_metrics(figures | {"step": float(self.trainer.global_step)})

    def _level_figures(self, levels: dict[str, list[Any]]) -> dict[str, float]:
        """Return the epsilon error per dimension in a few bands of noise levels, named by gamma.

        Levels beyond the outer bands, which learned endpoints may reach, count in the outer bands.
        """
        if self._levels is None:
            return {}
        low, high = self._levels[[0, -1]].tolist()
        ends = np.linspace(low, high, LEVEL_BANDS + 1)
        bands = np.searchsorted(ends[1:-1], levels["gamma"])
        errors = np.array(levels["epsilon_mse"])
        figures = {}
        for band in np.unique(bands):
            name = f"epsilon_mse_gamma_{ends[band]:.1f}_to_{ends[band + 1]:.1f}"
            figures[f"val_levels/{name}"] = float(errors[bands == band].mean())
        return figures

    @property
    def conditions(self) -> Mapping[str, Kind]:
        """{name: kind} of the condition parts that the denoiser reads; {} without a denoiser."""
        return {} if self.denoiser is None else self.denoiser.conditions

    def adapt_sampler(self, sampler: Any) -> Any:
        """Return a sampler that is adapted to this model; by default the same sampler."""
        return sampler

    def condition_of(self, batch: Batch) -> Condition | None:
        """Return the parts of a batch's condition that the network reads; None if it reads none."""
        if batch.condition is None or not self.conditional:
            return None
        if self.conditional is True:
            return batch.condition
        return batch.condition.only(*self.conditional)


def _mean_over_draws(draws: Sequence[Any]) -> Tensor:
    """Return the mean over draws of tensors (B,), in double."""
    return torch.stack([*draws]).double().mean(0)
