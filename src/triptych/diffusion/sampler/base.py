r"""The base class of samplers: the grid, the loop, and chunks of a large batch.

Subclasses implement ``step``. A grid between a schedule's endpoints has equal steps of gamma
(``gamma``), of the schedule's t (``time``), of its root (``quadratic``; Song et al. 2021, DDIM,
appendix D.2) or of s^{1 / rho} with s = sigma / alpha = e^{gamma / 2} (``karras``; Karras et al.
2022, eq. 5).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from triptych.declare import Count, Ge, Le, Unit, declared

from ..condition import Condition
from ..prediction import Prediction
from ..process import Process
from ..protocol import AnyDenoiser
from ..reverse_variance import ReverseVariance
from ..schedule import Schedule

Grid = Literal["gamma", "time", "quadratic", "karras"]
Progress = Callable[[Iterable[int]], Iterable[int]]  # shows a progress bar for a loop
NUMBERS = 2**20  # maximum number of entries of the samples that are drawn at once
ON_GPU = 4  # factor on a GPU: keeps it busy, and 50,000 samples still divide among eight GPUs


def chunk_size(shape: Sequence[int], device: torch.device | str = "cpu") -> int:
    """Return how many items of a shape are sampled at once on a device.

    The items have about a million numbers together, on a GPU four million.
    """
    numbers = NUMBERS
    if torch.device(device).type == "cuda":
        numbers *= ON_GPU
    return max(1, numbers // max(1, math.prod(shape)))


@dataclass(eq=False)
class Step:
    """One sampling step from ``gamma_t`` to the lower ``gamma_s``, both (), and its inputs.

    Attributes:
        denoiser: with or without guidance.
        condition: the condition of the B items, or None.
        generator: generator of the noise that the sampler adds.
        last: whether no step follows.
        history: values that a multi-step method keeps for its next step, or None.
    """

    denoiser: AnyDenoiser
    gamma_t: Tensor
    gamma_s: Tensor
    condition: Condition | None = None
    generator: torch.Generator | None = None
    last: bool = False
    history: tuple[Tensor, Tensor] | None = None

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def scales(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at gamma; those at ``gamma_t`` and ``gamma_s`` are known."""
        return self.process.scales(gamma)

    def guess(self, z: Tensor, gamma: Tensor) -> Prediction:
        """Return the prediction at z (B, *event) and gamma (), under the step's condition."""
        return self.denoiser(z, gamma, self.condition)

    def noise(self, z: Tensor) -> Tensor:
        """Return standard normal noise of z's shape."""
        return torch.randn(z.shape, generator=self.generator, device=z.device, dtype=z.dtype)


@declared("sampler")
class Sampler(ABC):
    """Base class: draw samples in ``steps`` steps from the schedule's gamma(1) down to gamma(0).

    Args:
        steps: number of steps, from 1 to 100000; beyond, the rounding errors of float32 add up.
        grid: "gamma", "time", "quadratic" or "karras".
        rho: the exponent of a Karras grid.
        chunk: samples drawn at a time; null for about a million numbers at a time, on a GPU four
            million.

    Attributes:
        calls, guesses: calls of the denoiser in one step, and for the final prediction of some
            schedules.
        reverse: the reverse variance it draws with; None if it is not an ancestral sampler.
    """

    calls = guesses = 1
    reverse: ReverseVariance | None = None

    def __init__(
        self,
        steps: Annotated[Count, Le(100_000), Unit("steps")],
        grid: Grid = "gamma",
        rho: Annotated[float, Ge(1)] = 7.0,
        chunk: Annotated[Count | None, Unit("samples")] = None,
    ):
        self.steps, self.grid, self.rho, self.chunk = steps, grid, rho, chunk

    @property
    def evaluations(self) -> int:
        """The number of denoiser calls for one sample (NFE)."""
        return self.steps * self.calls

    def count_denoiser_calls(self, schedule: Schedule | None) -> int:
        """Count the denoiser's calls for one sample, including a final prediction at z_0 if any."""
        guessed = schedule is not None and schedule.denoised
        return self.evaluations - guessed * (self.calls - self.guesses)

    def gammas(
        self,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the grid of gammas from gamma(1) down to gamma(0).

        (steps + 1,), or (steps,) if the schedule is ``denoised``.
        """
        if self.grid in ("time", "quadratic"):
            stops = schedule.stops(self.steps).to(device, dtype)
            return schedule.gamma(stops if self.grid == "time" else stops.square())
        t = torch.linspace(
            1.0, 0.0, self.steps + (not schedule.denoised), device=device, dtype=dtype
        )
        high, low = schedule.gamma(torch.stack([t[0], t[-1]]))
        if self.grid == "gamma":
            return low + (high - low) * t
        root = torch.exp(0.5 / self.rho * torch.stack([low, high]))
        gammas = 2 * self.rho * torch.log(root[0] + (root[1] - root[0]) * t)
        gammas[0], gammas[-1] = high, low  # set the ends exactly, as exp and log round
        return gammas

    def with_reverse_variance(self, variance: ReverseVariance) -> "Sampler":
        """Return the sampler with the reverse variance of a model, if its steps are ancestral."""
        return self

    @abstractmethod
    def step(self, z: Tensor, at: Step) -> Tensor:
        """Step from z_t at ``at.gamma_t`` to z_s at ``at.gamma_s``, (B, *event)."""

    def path(
        self,
        denoiser: AnyDenoiser,
        gammas: Tensor,
        z: Tensor,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield z (B, *event) after each step, starting from ``z`` at gammas[0].

        The last one is at gammas[-1].
        """
        levels = denoiser.process.grid(gammas)
        at = Step(denoiser, levels[0], levels[0], condition, generator)
        for at.gamma_t, at.gamma_s in pairwise(levels):
            at.last = at.gamma_s is levels[-1]
            z = self.step(z, at)
            yield z

    @torch.no_grad()
    def __call__(
        self,
        denoiser: AnyDenoiser,
        schedule: Schedule,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        progress: Progress = iter,
    ) -> Tensor:
        """Draw samples of the shape (B, *event), in data units.

        A sample is z_0 / alpha_0, the decoder's mean, or the final prediction of some schedules.
        ``progress`` wraps the loop over the steps of all chunks (a progress bar). The whole batch's
        starting noise is drawn first, so a deterministic sampler gives the same samples whatever
        the chunk.
        """
        gammas = self.gammas(schedule, device, dtype)
        process: Process = denoiser.process
        start = torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)
        start *= process.prior_std(gammas[0])
        parts = start.split(self.chunk or chunk_size(shape[1:], device))
        ticks = iter(progress(range(self.steps * len(parts))))
        samples = []
        for i, z in enumerate(parts):
            chunk_condition = None if condition is None else condition.split(len(parts[0]))[i]
            for z in self.path(denoiser, gammas, z, chunk_condition, generator):  # noqa: B007, B020
                next(ticks, None)
            if schedule.denoised:
                z = denoiser(z, gammas[-1], chunk_condition).x0 * process.alpha_sigma(gammas[-1])[0]
            samples.append(z)
        next(ticks, None)  # iterate once more, so that a progress bar closes
        return torch.cat(samples).div_(process.alpha_sigma(gammas[-1])[0])
