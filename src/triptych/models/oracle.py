"""The exact denoiser of data with a known density, as a model that needs no training."""

import copy
from typing import Any

from torch import nn

from triptych.diffusion.bound import Bound
from triptych.diffusion.loss import Elbo
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import Process
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion


class OracleModel(Diffusion):
    """A diffusion model without parameters, which reports the best possible bound.

    Raises UserError if the data have no known density.
    """

    ignores = ("denoiser", "objective")

    def __init__(
        self,
        mixture: GaussianMixture | None,
        schedule: Schedule,
        process: Process,
        bound: Bound,
        *,
        data_name: str = "",
        **more: Any,
    ):
        if mixture is None:
            raise UserError(
                f"model=oracle: data {data_name} have no known density; use data=ring or mixture"
            )
        # A copy, as the data draw from their own mixture on the CPU, wherever the model is.
        denoiser, objective = Oracle(copy.deepcopy(mixture), process), Objective("score", Elbo())
        # The oracle is called like a Denoiser, but has no network.
        super().__init__(denoiser, schedule, objective, bound, mixture=mixture, **more)  # type: ignore[arg-type]
        self.label_dropout = 1.0  # the oracle is exact without a label, too

    def networks(self) -> list[nn.Module]:
        return []
