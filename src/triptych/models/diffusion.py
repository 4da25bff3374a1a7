"""Train a diffusion model on one objective, and report one bound."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.batch import Batch
from triptych.declare import Share
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import AUGMENTATION, MEMBER, Condition, drop_parts
from triptych.diffusion.denoiser import Denoiser
from triptych.diffusion.draws import Stream, hash_seed
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.loss import Elbo as OwnLoss
from triptych.diffusion.loss import Loss
from triptych.diffusion.objective import Objective
from triptych.diffusion.protocol import AnyDenoiser
from triptych.diffusion.schedule import Schedule
from triptych.diffusion.times import Adaptive, Stratified
from triptych.diffusion.whole_batch import whole_batch
from triptych.errors import UserError
from triptych.models.contract import check_gradient, check_output, check_schedule
from triptych.models.denoiser_model import ODE, DenoiserModel, level_edges

PANEL_POINTS = 60  # number of points of the curves in ``panels``
# Smallest allowed share of effective draws, n_eff / n. A gradient's variance grows by n / n_eff, so
# at this limit a batch of 128 is worth one item.
LEAST_EFFECTIVE = 0.01


def check_learned_schedule(schedule: Schedule, objective: Objective) -> None:
    """Raise ValueError if the loss or the times would spoil a learned schedule or adaptive times.

    For example, a learned schedule with another loss than the ELBO would move to easy noise levels.
    """
    if isinstance(schedule, LearnedEndpoints) and not isinstance(objective.loss, OwnLoss):
        raise ValueError(
            "schedule: a learned schedule needs the ELBO as the loss; set objective/loss=elbo"
        )
    if isinstance(schedule, Monotone) and not isinstance(objective.times, Stratified):
        fix = "set objective/times=uniform or stratified"
        raise ValueError(f"schedule=learned: needs uniformly distributed times; {fix}")
    if isinstance(objective.times, Adaptive) and has_extra_loss_term(objective.loss):
        problem = f"needs a loss that is never negative, unlike {type(objective.loss).__name__}"
        raise ValueError(f"objective/times=adaptive: {problem}; use objective/times=log_normal")


def has_extra_loss_term(loss: Loss) -> bool:
    """Return whether a loss has a term besides the weighted squared error."""
    return type(loss).nats is not Loss.nats


def check_dropout(label_dropout: Any, denoiser: AnyDenoiser) -> None:
    """Raise ValueError if ``label_dropout`` names a part that the denoiser does not read."""
    if isinstance(label_dropout, Mapping):
        known = {*denoiser.conditions} - {AUGMENTATION}
        for name in set(label_dropout) - known:
            names = ", ".join(sorted(known)) or "a number"
            problem = "the network reads no such part of the condition"
            raise ValueError(f"model.label_dropout.{name}: {problem}; must be {names}")


def check_dequantisation(likelihood: Likelihood | None, levels: int | None) -> None:
    """Raise UserError unless likelihood and data are both discrete, or both continuous."""
    if likelihood is None or (levels is None) == (likelihood.dequantisation == "none"):
        return
    key = f"likelihood.dequantisation={likelihood.dequantisation}"
    raise UserError(
        f"{key}: must be none for continuous data, uniform or lossless for discrete data"
    )


class Diffusion(DenoiserModel):
    """A diffusion model: trains ``denoiser`` on ``objective`` and reports ``bound``.

    Args:
        denoiser, schedule, objective, bound: see ``triptych.diffusion``.
        more: see ``BoundModel``.
        levels: number K of the data's levels, None for a density.
        likelihood: the likelihood by the probability-flow ODE, reported beside the bound for the
            first ``likelihood_items`` test items.
        label_dropout: probability that an item trains without its condition, or one for each part
            by its name. The network then also learns to predict without a condition, which
            classifier-free guidance needs.
        training: function of n that returns the first n training items. An optimal reverse variance
            and the control variates of the final evaluation (``diffusion.control``) are fitted to
            them; None: there are no control variates.

    Raises:
        ValueError: a learned schedule has a loss or times that would move it to easy noise levels;
            or ``label_dropout`` names a part that the condition lacks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        objective: Objective,
        bound: Bound,
        *,
        levels: int | None = None,
        label_dropout: Share | dict[str, Share] = 0.0,
        likelihood: Likelihood | None = None,
        likelihood_items: int = 0,
        training: Callable[[int], Batch] | None = None,
        **more: Any,
    ):
        super().__init__(edges=level_edges(schedule), extras=ODE if likelihood else (), **more)
        check_learned_schedule(schedule, objective)
        check_dropout(label_dropout, denoiser)
        check_dequantisation(likelihood, levels)
        self.event = self.shape  # the model diffuses the items themselves
        self.label_dropout, self.levels = label_dropout, levels
        self.denoiser, self.schedule = denoiser, schedule
        self.objective, self.bound = objective, bound
        self.times = objective.times  # a submodule, so that checkpoints hold its parameters
        if isinstance(objective.loss, nn.Module) and has_extra_loss_term(objective.loss):
            self.loss_module = objective.loss
        self.likelihood, self.likelihood_items = likelihood, likelihood_items
        self.training_items = training

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        # Learned endpoints of the schedule are trained on the bound's end terms, too.
        condition = self._training_condition(batch, step, rank, world)
        nats = self._objective(batch.x, condition, step, rank, world)
        if isinstance(self.schedule, LearnedEndpoints) and not self.schedule.pinned:
            share = self.step_share(len(batch.x), step, rank, world)
            share = share._replace(seed=hash_seed(self.seed, Stream.ENDS))
            _, eps_0 = self.random.training_draw(self.shape, share)
            prior, reconstruction = self.bound.ends(self.denoiser, batch.x, eps_0, condition)
            nats = nats + prior + reconstruction
        return nats

    def _objective(
        self, x: Tensor, condition: Condition | None, step: int, rank: int, world: int
    ) -> Tensor:
        """Return the objective's loss for items x (B, *event), nats (B,), at random times."""
        share = self.step_share(len(x), step, rank, world)
        u, eps = self.random.training_draw(self.event, share, self.times.stratified)
        with torch.no_grad():
            t, density = self.times(u, self.schedule)
        if isinstance(self.schedule, Monotone) and self.objective.steps is None:
            with self.schedule.variance_descent() as set_losses:
                nats = self.objective(self.denoiser, self.schedule, x, t, eps, condition).nats
            set_losses(nats)
        else:
            nats = self.objective(self.denoiser, self.schedule, x, t, eps, condition).nats
        if self.times.learns:
            gathered = whole_batch(torch.stack([t, nats.to(t)], 1))
            self.times.tell(gathered[:, 0], gathered[:, 1], self.schedule)
        if density is None:
            return nats
        return nats / density

    def networks(self) -> list[nn.Module]:
        return [self.denoiser.network]

    def _training_condition(
        self, batch: Batch, step: int, rank: int, world: int
    ) -> Condition | None:
        """Return the condition that the network reads, with parts of items dropped at random."""
        # The augmentation of an item is always part of its condition, and is never dropped.
        augmentation = None if batch.condition is None else batch.condition.only(AUGMENTATION)
        condition = self.condition_of(batch)
        if condition is not None:
            condition = condition.without(AUGMENTATION)
        if condition is not None and self.label_dropout:
            condition = drop_parts(
                condition, self.label_dropout, self.seed, step, rank, world, self.random
            )
        if augmentation is not None:
            condition = augmentation.merge(condition)
        members = getattr(self.denoiser.network, "training_shares", 1)
        if members > 1:
            share = self.step_share(len(batch.x), step, rank, world)
            assigned = self.random.ensemble_members(members, share)
            condition = Condition(**{MEMBER: assigned}).merge(condition)
        return condition

    def parameter_groups(self) -> list[dict[str, Any]]:
        # The schedule's parameters have no weight decay.
        trained = [p for p in self.parameters() if p.requires_grad]
        of_schedule = {id(p) for p in self.schedule.parameters()}
        others = [p for p in trained if id(p) not in of_schedule]
        groups: list[dict[str, Any]] = [{"params": others}]
        if len(others) < len(trained):
            learned = [p for p in trained if id(p) in of_schedule]
            groups.append({"params": learned, "weight_decay": 0.0})
        return groups

    def train_figures(self) -> dict[str, Tensor]:
        if not isinstance(self.schedule, LearnedEndpoints):
            return {}
        low, high = self.schedule.ends(self.device)
        return {"gamma_min": low, "gamma_max": high}

    def try_components(self, batch: Batch) -> None:
        t = torch.linspace(0.2, 0.8, len(batch.x), device=batch.x.device)
        self._try_schedule_and_loss(t)
        self._check_times()
        for drawn in self.times(t, self.schedule):
            if drawn is not None:  # None stands for uniformly distributed times
                check_output("objective.times", self.times.forward, drawn, (len(t),))
        if isinstance(self.denoiser, Denoiser):  # the oracle has no output space
            self._try_denoiser(batch)

    def _try_schedule_and_loss(self, t: Tensor) -> None:
        """Raise UserError if schedule or loss return an invalid output at the times ``t`` (B,)."""
        schedule, process, shape = self.schedule, self.denoiser.process, (len(t),)
        loss = self.objective.loss
        check_output("schedule", schedule.gamma, schedule.gamma(t), shape)
        check_output("schedule", schedule.dgamma, schedule.dgamma(t), shape)
        check_schedule(schedule, t.device)
        at = self.objective.level(process, schedule, t)
        check_output("objective.loss", loss.weight, partial(loss.weight, at), shape, ())
        nats = partial(loss.nats, at, torch.ones_like(t), self.dims)
        check_output("objective.loss", loss.nats, nats, shape)

    def _try_denoiser(self, batch: Batch) -> None:
        """Raise UserError if network or denoiser return an invalid output for a batch."""
        n, x, condition = len(batch.x), batch.x, self.condition_of(batch)
        network, process = self.denoiser.network, self.denoiser.process
        output: Any = self.denoiser.output
        gamma = self.schedule.gamma(torch.linspace(0.2, 0.8, n, device=x.device))
        z = process.diffuse(x, gamma, torch.randn(x.shape, device=x.device))
        shape = (n, *self.event) if output.per_dim == 1 else (n, output.per_dim, *self.event)

        @torch.enable_grad()
        def call() -> Any:
            return network(z, gamma, condition)

        raw = check_output("denoiser.network", network.forward, call, shape)
        check_gradient("denoiser.network", network, raw)

        def value() -> Any:
            return self.denoiser(z, gamma, condition).value

        check_output("objective.output", output.forward, value, tuple(x.shape))

    def _check_times(self) -> None:
        """Raise UserError if too small a share of the training times is effective in the loss."""
        # This is checked only before training, so that older trained models can still be evaluated.
        process, schedule = self.denoiser.process, self.schedule
        effective = self.objective.effective_share(process, schedule, self.device)
        if not effective >= LEAST_EFFECTIVE:  # this form also refuses NaN
            times, loss = type(self.times).__name__, type(self.objective.loss).__name__
            problem = f"only {effective:.2g} of the draws are effective with objective.loss={loss}"
            fix = "use wider times, or set objective/loss/over to the density of the times"
            raise UserError(f"objective.times={times}: {problem}; {fix}")

    @torch.no_grad()
    def panels(self) -> dict[str, Any]:
        """Return plot data: the objective's effective weight (ELBO = 1) and the schedule."""
        t = torch.linspace(0.005, 0.995, PANEL_POINTS, device=self.device)
        low, high = self.schedule.ends(self.device)
        gamma = low + (high - low) * t
        weight = self.objective.effective_weight(self.denoiser.process, self.schedule, gamma)
        times = torch.linspace(0.0, 1.0, PANEL_POINTS + 1, device=self.device)
        return {
            "weighting": {"gamma": gamma.tolist(), "effective": weight.tolist()},
            "schedule": {"t": times.tolist(), "gamma": self.schedule.gamma(times).tolist()},
        }
