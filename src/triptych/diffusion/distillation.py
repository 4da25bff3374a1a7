"""Progressive distillation (Salimans & Ho 2022, algorithm 2).

One step of the student replaces two steps of its teacher.
"""

import torch
from torch import Tensor

from .condition import Condition
from .prediction import Prediction
from .process import expand_like
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
    """Return the targets (x, epsilon) for which one student step equals two teacher DDIM steps.

    With t' = t - 1 / 2T, t'' = t - 1 / T and the teacher's DDIM steps from z to z' to z'',

        x = (z'' - r z) / (alpha'' - r alpha),   r = sigma'' / sigma,
        epsilon = (z - alpha x) / sigma.

    Both are (B, *event). ``t``: (B,), multiples of 1 / T; ``steps``: the student's T.
    """
    process = teacher.process
    levels = [schedule.gamma((t.double() - k / (2 * steps)).clamp(min=0)) for k in range(3)]
    scales = [process.alpha_sigma(expand_like(gamma, z)) for gamma in levels]
    here = there = z.double()  # double, because x is a ratio of two differences of order 1 / T
    for k, gamma in enumerate(levels[:2]):
        guess = teacher(there.to(z), gamma.to(z), condition)
        there = Prediction(guess.own, guess.value.double(), there, *scales[k]).at(*scales[k + 1])
    (alpha, sigma), _, (last_alpha, last_sigma) = scales
    ratio = last_sigma / sigma
    x = (there - ratio * here) / (last_alpha - ratio * alpha)
    return x.to(z), ((here - alpha * x) / sigma).to(z)
