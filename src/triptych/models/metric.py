"""Metrics of one's own, beside the bound: torchmetrics' interface, told the model and a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.data.batch import Batch
from triptych.declare import declared
from triptych.errors import UserError
from triptych.models.accounting import figure_of, sums_of
from triptych.models.base import BoundModel


@declared("metrics")
class PerItem(Metric):
    """Mean and standard error, over a split's items, of one number an item: a subclass gives ``values``.

    The sums are kept in double and added over processes, so batch size and processes change nothing but
    rounding. ``higher_is_better`` (True, False, None) is torchmetrics', and is said in the report.

    What it draws at random follows from the seed, the process and the batch's place.

    Any ``torchmetrics.Metric`` whose ``update`` takes ``(model, batch)`` does as well; its ``compute`` gives
    a number, or {"mean", "stderr", "n"}. If it has ``check(model)``, that may refuse a model before training.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def values(self, model: BoundModel, batch: Batch) -> Tensor:
        """One number an item, (B,); items of NaN are not counted."""
        raise NotImplementedError

    def update(self, model: BoundModel, batch: Batch) -> None:
        """Count the items of a batch.

        Raises:
            ValueError: ``values`` has another shape than (B,).
        """
        found, items = self.values(model, batch).detach(), len(batch.x)
        if found.shape != (items,):
            raise ValueError(
                f"{type(self).__name__}.values gave shape {tuple(found.shape)}; one number an item, "
                f"({items},), is accepted"
            )
        self.sums += sums_of(found[~found.isnan()].double())

    def compute(self) -> dict[str, Any]:
        """{"mean", "stderr", "n"}; a mean of None where no item had a number."""
        n, total, squares = self.sums.tolist()
        return figure_of(int(n), total, squares) if n else {"mean": None, "stderr": None, "n": 0}


def check_diffuses_data(model: BoundModel) -> None:
    """UserError for a model whose denoiser, if any, is not of the data themselves."""
    if getattr(model, "denoiser", None) is None or model.of_latents:
        raise UserError(
            f"{type(model).__name__} diffuses no data; model=diffusion is accepted with this metric"
        )
