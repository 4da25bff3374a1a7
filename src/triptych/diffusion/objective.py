r"""Training objectives: what the network predicts, the loss, and the distribution of times.

``loss = w(gamma) 1/2 gamma'(t) |eps - eps_hat|^2`` in nats, whatever the output space, so that with
the bound's own loss all objectives minimise the very same number (Luo 2022, eqs. 99, 130, 148; VDM
eq. 17).
"""

import math

import torch
from torch import Tensor, nn

from triptych.declare import FilePath, Positive, Steps, declared

from .bound import Continuous, DiffusionTerm
from .condition import MEMBER, Condition
from .distillation import distilled
from .draws import CPU
from .loss import Elbo, Level, Loss, Sigmoid, Squared, Vlb
from .prediction import Space
from .process import Process
from .protocol import AnyDenoiser
from .reverse_variance import Optimal, ReverseVariance, as_variance, step_below, step_kl, step_of
from .schedule import Schedule
from .times import Density, Stratified, Times

CELLS = 4096  # number of gammas, at the centres of equal cells of the schedule's range
# The weight 0.001 of iDDPM, where the bound is in bits; here it is in nats. It is the same for sums
# and means over dimensions.
IDDPM = 1e-3 / math.log(2)


@declared("objective")
class Objective:
    """A training objective: an output, a loss and times; a learned reverse variance adds a term.

    The term is that of iDDPM's hybrid loss (Nichol & Dhariwal 2021, eq. 16): ``vlb_weight`` * T
    KL(q(z_s | z_t, x) || N(stop-gradient(mean), V)). It alone trains V. iDDPM's L_simple + 0.001
    L_vlb is the mean over dimensions of |eps - eps_hat|^2 and of T KL in bits; in sums and nats
    this is the plain squared error with the weight 0.001 / ln 2 = 0.00144. With weights relative to
    the bound (elbo, sigmoid) both parts are nats of the same bound, and 1 is natural. The ``vlb``
    loss is the KL alone, without the stop-gradient, and needs no such weight.

    Args:
        output: the network's output, or the name of its space, whose squared error is the
            ``simple`` loss.
        loss: gives w(gamma).
        times: the distribution of training times; None: ``Stratified``. The expected loss is the
            same for all.
        steps: train at T discrete times, with T expm1(gamma_t - gamma_s) in place of gamma'(t) (VDM
            eq. 13); None: continuous time, in which V has no effect.
        vlb_weight: weight of a learned variance's term; None: 0.001 / ln 2 with a plain squared
            error, 1 with elbo and sigmoid.
        variance: variance V of the bound's reverse steps.
        teacher: checkpoint of a model with 2 T steps, two of which the trained model learns to take
            at once (see ``distillation``); the loaded model is later set as the attribute. None:
            train on the data.
    """

    def __init__(
        self,
        output: nn.Module | Space | str,
        loss: Loss,
        steps: Steps | Continuous = None,
        vlb_weight: Positive | None = None,
        variance: ReverseVariance | str = "beta_tilde",
        times: Times | None = None,
        teacher: FilePath | None = None,
    ):
        # mypy: an attribute of a module may be a tensor
        self.space: str | Space = output if isinstance(output, str | Space) else output.space  # type: ignore[assignment]
        self.loss, self.steps, self.times = loss, steps, times or Stratified()
        self.variance = as_variance(variance, "variance")
        self.teacher: AnyDenoiser | None = None
        if steps is None:
            self._check_continuous(teacher)
        if teacher is not None and self.variance.learned:
            problem = "a teacher cannot train a learned variance"
            raise ValueError(
                f"objective.teacher={teacher}: {problem}; use another bound.variance than learned"
            )
        if isinstance(loss, Vlb) and isinstance(self.variance, Optimal):
            problem = "bound.variance=optimal is measured, so it cannot be trained"
            raise ValueError(f"objective/loss=vlb: {problem}; use beta_tilde, beta or learned")
        if self.variance.learned and not isinstance(loss, Vlb):
            self.vlb_weight = _default_vlb_weight(loss) if vlb_weight is None else vlb_weight

    def _check_continuous(self, teacher: FilePath | None) -> None:
        """Raise ValueError for a loss, teacher or variance that needs discrete time steps."""
        fix = "set objective.steps=T"
        if self.loss.of_steps:
            name = type(self.loss).__name__
            raise ValueError(f"objective.loss={name}: needs discrete steps; {fix}")
        if teacher is not None:
            problem = "distillation needs discrete steps"
            raise ValueError(f"objective.teacher={teacher}: {problem}; {fix}")
        if self.variance.learned:
            problem = "a learned reverse variance needs discrete steps"
            raise ValueError(f"objective.steps=null: {problem}; {fix}")

    def __call__(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        condition: Condition | None = None,
    ) -> DiffusionTerm:
        """Return the weighted loss at x, eps (B, *event) and t (B,) in [0, 1].

        ``condition``: of B items, or None.
        """
        process = denoiser.process
        at = self.level(process, schedule, t)
        gamma = at.gamma.to(x)
        z = process.diffuse(x, gamma, eps)
        guess = denoiser(z, gamma, condition)
        if self.teacher is not None and self.steps is not None:
            upper = (at.t * self.steps).round() / self.steps
            if isinstance(self.teacher, nn.Module):
                # The teacher is not a submodule, so Lightning does not move it to the device.
                self.teacher.to(z.device)
            if condition is not None:
                # The teacher uses all its members, whichever member of the student the item trains.
                condition = condition.without(MEMBER)
            x, eps = distilled(self.teacher, schedule, z, upper, self.steps, condition)
        squares = guess.epsilon_error(x, eps).square()
        squared = squares.flatten(1).sum(1)

        def kl(squares: Tensor, weight: float = 1.0) -> Tensor:
            # Return T times the KL of the step, with the reverse variance that the bound uses.
            assert self.steps is not None and at.lower is not None
            log_ratio = self.variance.log_ratio(process, at.gamma, at.lower, guess)
            return weight * self.steps * step_kl(squares, at.gamma, at.lower, log_ratio)

        if isinstance(self.loss, Vlb):
            return DiffusionTerm(kl(squares), gamma, squared)
        nats = self.loss.nats(at, squared, x[0].numel())
        if self.variance.learned:
            nats = nats + kl(squares.detach(), self.vlb_weight)
        return DiffusionTerm(nats, gamma, squared)

    def level(self, process: Process, schedule: Schedule, t: Tensor) -> Level:
        """Return the level at which the loss for t in [0, 1) is evaluated, any shape, in double.

        In continuous time it is the level at t, at T steps the upper end of the step that contains
        t.
        """
        if self.steps is None:
            return Level(process, schedule.gamma(t), schedule.dgamma(t), t, self.space)
        gamma, lower = step_of(schedule, t, self.steps)
        return self._step(process, gamma, lower, schedule.t_of(gamma))

    def _step(self, process: Process, gamma: Tensor, lower: Tensor, t: Tensor) -> Level:
        assert self.steps is not None
        dgamma = self.steps * torch.expm1(gamma - lower)
        return Level(process, gamma, dgamma, t, self.space, lower, self.steps)

    def effective_weight(self, process: Process, schedule: Schedule, gamma: Tensor) -> Tensor:
        """Return the effective weight w(gamma) on the bound's integrand, for plots."""
        t = schedule.t_of(gamma)
        if self.steps is None:
            return self.loss.weight(Level(process, gamma, schedule.dgamma(t), t, self.space))
        lower = step_below(schedule, gamma, self.steps)
        return self.loss.weight(self._step(process, gamma, lower, t))

    @torch.no_grad()
    def effective_share(
        self, process: Process, schedule: Schedule, device: torch.device = CPU
    ) -> float:
        """Return the effective sample size of the loss's draws, as a share n_eff / n (Kish 1965).

        It is 1 if the density of the draws is not known beforehand. Draws of gamma with density q
        estimate int f dgamma by f / q, so n_eff / n = (int f)^2 / int f^2 / q. f is the loss of the
        best linear denoiser for data of unit variance, w(gamma) / (1 + e^gamma): a large weight
        does no harm where the error is small. Draws beyond the schedule's ends count as lost.
        ``device``: where the schedule and the loss are.
        """
        if not isinstance(self.times, Density) or isinstance(self.times, Stratified):
            return 1.0
        low, high = schedule.ends(device, torch.float64)
        cells = torch.arange(CELLS, dtype=torch.float64, device=device)
        gamma = low + (high - low) * (cells + 0.5) / CELLS
        t = schedule.t_of(gamma)
        q = self.times.per_gamma(gamma, schedule.dgamma(t), t)
        f = self.effective_weight(process, schedule, gamma) * torch.sigmoid(-gamma)
        return ((high - low) * f.mean().square() / (f.square() / q).mean()).item()


def _default_vlb_weight(loss: Loss) -> float:
    if isinstance(loss, Squared):
        return IDDPM
    if isinstance(loss, Elbo | Sigmoid):
        return 1.0
    name = type(loss).__name__
    raise ValueError(
        f"objective.vlb_weight=null: must be a positive number with {name} as the loss; null is "
        "only for objective/loss=elbo, sigmoid, simple, epsilon and other plain squared errors"
    )
