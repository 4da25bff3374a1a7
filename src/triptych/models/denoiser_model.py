"""The base class of diffusion models: report the bound of a denoiser, and draw its samples."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound, BoundTerms
from triptych.diffusion.condition import Condition
from triptych.diffusion.control import ITEMS, Control, DrawError, controlled_error
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import Denoiser
from triptych.diffusion.draws import CPU, Draw, evaluation_times
from triptych.diffusion.gap import excess_gap
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.reference import BaselineErrors, n_fit_items
from triptych.diffusion.reverse_variance import Learned, Optimal, WithFraction
from triptych.diffusion.sampler import Ancestral, Sampler
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.base import BoundModel

# Metrics by the probability-flow ODE: -log p(x), its three terms, and the bound of the same items.
ODE = ("ode", "ode_density", "ode_dequantisation", "ode_reconstruction", "ode_bound")
LEVEL_BINS = 20  # number of noise-level bins of the recorded epsilon error
CALIBRATION = 256  # training items on which an optimal reverse variance is measured


class DenoiserModel(BoundModel):
    """A model that reports ``bound`` and draws samples; a subclass adds the training.

    The subclass sets the attributes. ``event``: shape of one diffused item, which is a data item or
    its latents. ``control``: control variates for the final evaluation, which are fitted by
    ``before_report``.
    """

    event: tuple[int, ...]
    denoiser: Denoiser
    schedule: Schedule
    bound: Bound
    levels: int | None
    likelihood: Likelihood | None
    likelihood_items: int
    training_items: Callable[[int], Batch] | None
    control: Control | None = None
    _reference: tuple[tuple[float, ...], BaselineErrors] | None = None

    def before_accounting(self) -> None:
        """Set noise-level bins between the schedule's endpoints; measure an optimal variance."""
        self.control = None
        self.accounting.edges = level_edges(self.schedule, self.device)
        if isinstance(self.bound.variance, Optimal):
            x, condition = self.training_values_and_condition(CALIBRATION)
            self.bound.calibrate(self.denoiser, x, self.seed, condition)

    def training_values_and_condition(self, n: int) -> tuple[Tensor, Condition | None]:
        """Return n training items' diffused values and their condition, on the model's device."""
        assert self.training_items is not None
        items = self.training_items(n)
        condition = self.condition_of(items)
        if condition is not None:
            condition = condition.to(self.device)
        return self.clean_values(items), condition

    def clean_values(self, items: Batch) -> Tensor:
        """Return the values of the items to which noise is added, (n, *event), on the device."""
        return items.x.to(self.device)

    @torch.no_grad()
    def before_report(self) -> None:
        """Fit control variates, which reduce the noise of the final evaluation.

        Every process uses the same items in the same batches, so all fit the same coefficients.
        """
        if self.training_items is None:
            return
        ends = tuple(self.schedule.ends(self.device).tolist())
        if self._reference is None or self._reference[0] != ends:
            x = self.clean_values(self.training_items(n_fit_items(math.prod(self.event)))).cpu()
            self._reference = (
                ends,
                BaselineErrors(x, self.denoiser.process, ends[0], ends[1], self.levels),
            )
        x, condition = self.training_values_and_condition(ITEMS)
        place = self.random.place(self.device)
        self.control = Control(
            self.bound, self.denoiser, self._reference[1], x, self.seed, condition, place
        )

    def elbo(self, batch: Batch, repeat: int, repeats: int) -> BoundTerms:
        draw, weight = self._draw(batch, repeat, repeats)
        condition = self.condition_of(batch)
        ends = self.bound.ends(self.denoiser, batch.x, draw.eps_0, condition)
        return BoundTerms(*ends, self._diffusion(batch.x, draw, weight, condition))

    def _diffusion(
        self, x: Tensor, draw: Draw, weight: Tensor, condition: Condition | None
    ) -> Tensor:
        """Estimate the diffusion term at x (B, *event), nats (B,), from one draw per item.

        Control variates are applied. The epsilon errors are added to the bins of their noise
        levels.
        """
        term = self.bound.diffusion(self.denoiser, x, draw.t, draw.eps, condition)
        # The accounting divides by the data's dimensions, but latents have fewer dimensions.
        squared = term.squared_error * (self.dims / math.prod(self.event))
        estimate = term.nats
        if self.control is not None:
            estimate = self.control(term.nats, x, draw.t, draw.eps, weight)
        self.accounting.update_levels(term.gamma, squared, term.nats, weight, estimate)
        return estimate

    def draw_error(self, batch: Batch, totals: Tensor) -> DrawError:
        """Estimate the error of each item's mean over R draws.

        ``totals`` (R, B): the bound of each draw and item. Draws are spread evenly in time, so the
        error is estimated from neighbours in time.
        """
        return controlled_error(totals, [self.control], batch.index, self.seed)

    def gap(self, batch: Batch, repeat: int, repeats: int) -> Tensor | None:
        """Estimate how far the bound exceeds the exact -log p(x), nats (B,).

        Return None unless the data have a known density and time is continuous.
        """
        if self.bound.steps is not None or not isinstance(self.bound.decoder, GaussianDensity):
            return None
        draw, weight = self._draw(batch, repeat, repeats)
        return excess_gap(self.denoiser, self.schedule, self.truth[0], batch.x, draw, weight)

    def extra_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return -log p by the probability-flow ODE and its terms, {name: nats (B,)}.

        Items beyond the first ``likelihood_items`` have NaN.
        """
        if self.likelihood is None or self.test_loader.name != "test":
            return {}
        figures = torch.full(
            (4, len(batch.x)), torch.nan, dtype=torch.float64, device=batch.x.device
        )
        chosen = batch.index.to(batch.x.device) < self.likelihood_items
        if chosen.any():
            condition = self.condition_of(batch)
            if condition is not None:
                condition = condition[chosen]
            index = batch.index[chosen.cpu()]
            nats = self.likelihood(self.denoiser, batch.x[chosen], index, condition, self.random)
            parts = (nats.total, nats.density, nats.dequantisation, nats.reconstruction)
            for figure, part in zip(figures, parts, strict=True):
                figure[chosen] = part
        return dict(zip(ODE, figures, strict=False))

    def _draw(self, batch: Batch, repeat: int, repeats: int) -> tuple[Draw, Tensor]:
        """Return the random times and noise of B items, and 1 / density of the times (B,)."""
        index = batch.index
        draw = self.random.evaluation_draw(
            self.event, index, self.seed, repeat, repeats, self.device
        )
        weight = torch.ones(len(index), dtype=torch.float64)
        if self.control is not None:
            t, weight = self.control.times(evaluation_times(index, self.seed, repeat, repeats))
            draw = draw._replace(t=t.float().to(self.device))
        return draw, weight.to(self.device)

    def to_picture(self, x: Tensor) -> Tensor:
        """Convert partly denoised values x (..., *event) to pictures (..., *shape)."""
        return x

    def check_sampler(self, sampler: Sampler) -> None:
        part = getattr(sampler, "by", None)
        # A sampler with ``by`` is a ``Chosen``, which has ``draws``, too.
        if part is not None and part not in self.conditions and sampler.draws > 1:  # type: ignore[attr-defined]
            raise UserError(
                f"sampler.by={part}: this model's condition has no such part; use sampler=ddim"
            )
        predicts_variance = isinstance(getattr(self.denoiser, "output", None), WithFraction)
        if (
            isinstance(sampler.with_reverse_variance(self.bound.variance).reverse, Learned)
            and not predicts_variance
        ):
            raise UserError(
                "sampler.variance=learned: the model was trained without bound.variance=learned; "
                "use null, beta_tilde, beta or optimal"
            )

    def adapt_sampler(self, sampler: Sampler) -> Sampler:
        """Return the sampler with the bound's reverse variance, or unchanged if it uses none.

        An optimal variance is measured at the sampler's own noise levels.
        """
        sampler = sampler.with_reverse_variance(self.bound.variance)
        if isinstance(sampler, Ancestral) and isinstance(sampler.reverse, Optimal):
            x, condition = self.training_values_and_condition(CALIBRATION)
            return sampler.calibrated(self.denoiser, self.schedule, x, self.seed, condition)
        return sampler

    def sample(
        self,
        n: int,
        sampler: Any,
        generator: torch.Generator,
        condition: Condition | None = None,
        progress: Any = iter,
        denoiser: Any = None,
    ) -> Tensor:
        """Draw n samples (n, *event).

        ``denoiser`` is used in place of the model's own, for example a denoiser with guidance.
        """
        return self.adapt_sampler(sampler)(
            denoiser or self.denoiser,
            self.schedule,
            (n, *self.event),
            generator=generator,
            condition=condition,
            device=self.device,
            progress=progress,
        )


@torch.no_grad()
def level_edges(schedule: Schedule, device: torch.device = CPU) -> Tensor:
    """Return the gammas at the edges of the noise-level bins, between the endpoints, on the CPU.

    ``device``: where the schedule is.
    """
    low, high = schedule.ends(device).tolist()
    return torch.linspace(low, high, LEVEL_BINS + 1)
