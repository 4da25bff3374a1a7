r"""Samplers: from z_1 ~ prior down a grid of gammas to z_0, one ``step`` a pair of neighbours.

A sampler is driven by a ``Denoiser`` alone, so each works with every network, guidance and oracle, and under
any process and schedule. The deterministic ones solve one equation, the probability-flow ODE, which in the
coordinates ``y = z / alpha`` and ``s = sigma / alpha = e^{gamma / 2}`` is ``dy/ds = epsilon(z, gamma)``,
whatever the process.
"""

from .ancestral import Ancestral
from .annealed_langevin import AnnealedLangevin
from .base import History, Progress, Sampler, Step, chunk_size
from .chosen import Chosen
from .ddim import DDIM
from .dpm_solver import DPMSolver
from .edm import EDM
from .euler import Euler
from .heun import Heun
from .langevin import Langevin
from .predictor_corrector import PredictorCorrector

__all__ = [
    "DDIM",
    "EDM",
    "Ancestral",
    "AnnealedLangevin",
    "Chosen",
    "DPMSolver",
    "Euler",
    "Heun",
    "History",
    "Langevin",
    "PredictorCorrector",
    "Progress",
    "Sampler",
    "Step",
    "chunk_size",
]
