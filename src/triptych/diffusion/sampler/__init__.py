r"""Samplers: from z_1 ~ prior down a grid of gammas to z_0.

``step`` goes from one gamma of the grid to the next. A sampler calls nothing but a ``Denoiser``, so
each works with every network, guidance and oracle, and under any process and schedule.
"""

from .ancestral import Ancestral
from .base import Progress, Sampler, Step, chunk_size
from .langevin import AnnealedLangevin, Langevin, PredictorCorrector
from .ode import DDIM, EDM, Chosen, DPMSolver, Euler, Heun

__all__ = [
    "DDIM", "EDM", "Ancestral", "AnnealedLangevin", "Chosen", "DPMSolver", "Euler", "Heun",
    "Langevin", "PredictorCorrector", "Progress", "Sampler", "Step", "chunk_size",
]  # fmt: skip
