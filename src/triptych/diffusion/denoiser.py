"""A denoiser: a network, a process, and the meaning of the network's output.

It is called with ``(z, gamma, condition)`` and returns a ``Prediction``. The exact oracle and every
guidance are denoisers too, and samplers, bounds and likelihoods use nothing else.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from triptych.declare import IsClass, Positive

from .condition import AUGMENTATION, Condition, Kind
from .pieces import Pieces
from .prediction import SPACES, Prediction, Row, Space, edm, space_of
from .process import Process, expand_like
from .reverse_variance import ReverseVariance, step_below
from .schedule import Schedule


class Output(nn.Module):
    """Read the network's output as the prediction in one space, without further scaling.

    Args:
        space: a name among ``SPACES``, or a ``Space`` of your own.
        clip: clamp the predicted x0 to [-clip, clip] outside of training, as DDPM's code does;
            None: do not clamp.

    Attributes:
        per_dim: how many numbers the network returns per dimension of z.
    """

    per_dim = 1

    def __init__(
        self,
        space: Literal["x0", "epsilon", "score", "v", "velocity", "edm"]
        | Annotated[Space, IsClass()],
        clip: Positive | None = None,
    ):
        super().__init__()
        self.clip = clip
        self.space = space_of(space)

    def forward(self, raw: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """Convert the network's raw output (B, *event) to a ``Prediction`` at z (B, *event)."""
        guess = Prediction(self.space, raw, z, alpha, sigma)
        if self.clip is None or self.training:
            return guess
        return guess.moved("x0", guess.x0.clamp(-self.clip, self.clip))


class EDMOutput(Output):
    """Read the network's output as F of EDM's preconditioning, see ``prediction.edm``.

    EDM's c_in is the scale of z under ``process=edm``, and its lambda = 1 / c_out^2 is the
    ``simple`` loss. ``sigma_data``: the standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5):
        super().__init__(edm(sigma_data))


class MuTildeOutput(Output):
    """Read the network's output as the mean of q(z_s | z_t, x) at T steps (Ho et al. 2020).

    mu tilde = alpha_s x0 + sigma_s sqrt(q) epsilon with q = e^{gamma_s - gamma_t}; by the paper's
    eq. 7 this equals (alpha_s / alpha_t) q z + alpha_s (1 - q) x0. s is t - 1 / T; for t below 1 /
    T, where no step ends, gamma falls by as much as in the first step.

    Args:
        schedule, process: those that define the steps.
        objective_steps: T, from ``objective.steps``. It is required: in continuous time the mean of
            a step is z itself.
    """

    def __init__(self, schedule: Schedule, process: Process, objective_steps: int | None = None):
        if objective_steps is None:
            raise ValueError("objective=mu_tilde: needs discrete steps; set objective.steps=T")
        if objective_steps > 10_000:
            raise ValueError(
                f"objective.steps={objective_steps}: objective=mu_tilde allows at most 10000, as "
                "the mean of a shorter step equals z in float32; use fewer steps, or objective=x0, "
                "epsilon or v"
            )

        def row(alpha: Tensor, sigma: Tensor) -> Row:
            gamma = 2 * torch.log(sigma / alpha)
            lower = step_below(schedule, gamma, objective_steps)
            alpha_s, sigma_s = process.alpha_sigma(lower)
            return Row(alpha_s.to(alpha), (sigma_s * torch.exp(0.5 * (lower - gamma))).to(alpha))

        super().__init__(Space("mu_tilde", row))


class LevelOutput(nn.Module):
    """Predict x0 as the mean of a categorical posterior over the data's K ``levels``.

    The levels are at c_k = 2 k / (K - 1) - 1. The network gives one logit per level and dimension;
    ``p(k | z) ~ exp(logit_k - (z - alpha c_k)^2 / (2 sigma^2))``, and x0 is the mean of the c_k
    under it. The Gaussian factor is the exact likelihood of z, so the network only has to learn a
    prior for each pixel given its noisy surroundings.
    """

    space = SPACES["x0"]
    centres: Tensor

    def __init__(self, levels: int | None):
        super().__init__()
        if not levels or levels < 2:
            raise ValueError(
                f"objective=levels: needs data with discrete levels, but levels={levels}; "
                "set objective=x0, epsilon, score or v"
            )
        self.per_dim = levels
        self.register_buffer("centres", level_centres(levels), persistent=False)

    def forward(self, raw: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        centres = self.centres.view(-1, *(1,) * (z.ndim - 1))
        alpha_k, sigma_k = (a.unsqueeze(1) if a.ndim else a for a in (alpha, sigma))
        # Do not expand the square, so that the difference is exact for levels close to z, which
        # alone have weight.
        evidence = -0.5 * ((z.unsqueeze(1) - alpha_k * centres) / sigma_k).square()
        probabilities = torch.softmax(raw + evidence, dim=1)
        return Prediction("x0", (probabilities * centres).sum(1), z, alpha, sigma)


def level_centres(levels: int, device: torch.device | None = None) -> Tensor:
    """Return the K levels in data units, c_k = 2 k / (K - 1) - 1: float32 (K,)."""
    return torch.linspace(-1.0, 1.0, levels, device=device)


class Denoiser(nn.Module):
    """A network that predicts x0 and noise: (z, gamma, condition) -> ``Prediction``.

    Args:
        network: ``(z (B, *event), gamma (B,), condition | None) -> raw``.
        output: converts ``raw`` to a ``Prediction``.
        process: gives alpha and sigma at gamma.
        variance: the bound's reverse variance; a learned one reads additional numbers of ``raw``.
    """

    def __init__(
        self,
        network: nn.Module,
        output: nn.Module,
        process: Process,
        variance: ReverseVariance | None = None,
    ):
        super().__init__()
        self.network, self.process = network, process
        self.output = output if variance is None else variance.around(output)
        self.pieces = Pieces()
        # A clipped prediction is not the score of a density, so it has no likelihood.
        self.has_likelihood = getattr(output, "clip", None) is None

    @staticmethod
    def outputs(output: nn.Module, variance: ReverseVariance) -> int:
        """Return how many numbers the network must give per dimension of z."""
        return int(variance.around(output).per_dim)  # type: ignore[arg-type]  # a module's attribute

    @property
    def conditions(self) -> Mapping[str, Kind]:
        """The parts of a condition that the network reads, by name."""
        return getattr(self.network, "conditions", {})

    @property
    def conditional(self) -> bool:
        """Whether the network reads a condition part besides the augmentation of items."""
        return bool({*self.conditions} - {AUGMENTATION})

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Prediction:
        """Predict x0 and noise at z (B, *event) and gamma (B,) or ().

        ``condition``: of B items, or None.
        """
        alpha, sigma = self.process.scales(expand_like(gamma, z))
        raw = self._call_network(z, gamma.expand(z.shape[0]), condition)
        if raw.dtype != z.dtype:  # under autocast only the network runs in low precision
            raw = raw.to(z.dtype)
        return self.output(raw, z, alpha, sigma)

    def _call_network(self, z: Tensor, gamma: Tensor, condition: Condition | None) -> Tensor:
        if z.is_cuda and not torch.is_grad_enabled():
            return self.pieces(self.network, z, gamma, condition)
        return self.network(z, gamma, condition)  # type: ignore[no-any-return]  # a network's own
