"""Progressive distillation (Salimans & Ho 2022, algorithm 2).

One step of the student lands where two of its teacher's do.
"""

import torch
from torch import Tensor

from .condition import Condition
from .prediction import Prediction
from .process import expand
from .protocol import AnyDenoiser
from .schedule import Schedule


@torch.no_grad()
def distilled(
    teacher: AnyDenoiser,
    schedule: Schedule,
    z: Tensor,
    t: Tensor,
    steps: int,
    condition: Condition | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (x, epsilon), (B, *event) each, that the student must guess at z: two DDIM steps made one.

    With t' = t - 1 / 2T and t'' = t - 1 / T, and the teacher's steps from z over z' to z'',

        x = (z'' - r z) / (alpha'' - r alpha),   r = sigma'' / sigma,   epsilon = (z - alpha x) / sigma.

    t (B,): multiples of 1 / T; steps: T of the student.
    """
    process = teacher.process
    levels = [schedule.gamma((t.double() - k / (2 * steps)).clamp(min=0)) for k in range(3)]
    scales = [process.alpha_sigma(expand(gamma, z)) for gamma in levels]
    here = there = z.double()  # from which both steps differ by 1 / T
    for k, gamma in enumerate(levels[:2]):
        guess = teacher(there.to(z), gamma.to(z), condition)
        there = Prediction(guess.own, guess.value.double(), there, *scales[k]).at(*scales[k + 1])
    (alpha, sigma), _, (last_alpha, last_sigma) = scales
    ratio = last_sigma / sigma
    x = (there - ratio * here) / (last_alpha - ratio * alpha)
    return x.to(z), ((here - alpha * x) / sigma).to(z)
