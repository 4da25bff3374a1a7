"""Base classes of user-defined metrics, which are reported beside the bound.

`PerItem` is for the items of a split, `OfSamples` for samples.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from triptych.data.batch import Batch
from triptych.declare import declared
from triptych.errors import UserError
from triptych.models.accounting import Figures, count_and_sums
from triptych.models.base import BoundModel


@declared("metrics")
class PerItem(Figures):
    """Mean and standard error, over a split, of one number per item.

    A subclass gives the numbers by ``values``.
    ``higher_is_better`` (True, False, None) is torchmetrics', and stands in the report. What it
    draws at random follows from the seed, the process and the batch's place. ``version``: a whole
    number, to be changed with the definition; results record it.

    Any ``torchmetrics.Metric`` whose ``update`` takes ``(model, batch)`` does as well; its
    ``compute`` gives a number, or {"mean", "stderr", "n"}. If it has ``check(model)``, that may
    refuse a model before training.
    """

    version = 1

    def __init__(self) -> None:
        super().__init__(("value",))

    @abstractmethod
    def values(self, model: BoundModel, batch: Batch) -> Tensor:
        """Return a number for each item, (B,); items of NaN are not counted."""

    def update(self, model: BoundModel, batch: Batch) -> None:  # type: ignore[override]
        """Count the items of a batch; ValueError: ``values`` has another shape than (B,)."""
        values, items = self.values(model, batch), len(batch.x)
        if values.shape != (items,):
            raise ValueError(
                f"{type(self).__name__}.values returned shape {tuple(values.shape)}; must be a "
                f"tensor of shape ({items},), one number per item"
            )
        self.sums[0] += count_and_sums(values.detach()[~values.isnan()].double())

    def compute(self) -> dict[str, Any]:
        """Return {"mean", "stderr", "n"}; a mean of None where no item had a number."""
        return self.figures().get("value", {"mean": None, "stderr": None, "n": 0})


@dataclass(frozen=True)
class Samples:
    """A set of samples beside as many true items or more, both (n, *shape) in the model's units.

    ``labels``: the classes (n,) that the samples were drawn for. Of images with
    ``measures.classifier``, also its features (n, f) of both, and its logits (n, classes) of the
    samples. None where there are none.
    """

    x: Tensor
    true: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None
    true_features: Tensor | None = None
    logits: Tensor | None = None


@declared("metrics")
class OfSamples(Metric):
    """A figure of a set of samples, which a subclass computes by ``figure``.

    The subclass also sets ``title``, ``unit`` and which end is good.
    It is taken where ``measures`` takes its own: with the run's sampler and guidance, at each value
    of
    ``measures.over``, ``measures.repeats`` times; of pure noise and between true sets too, as its
    scale. Its key under ``metrics`` is its name.
    """

    full_state_update = False
    version = 1  # increase it when the definition of ``figure`` changes
    title = ""
    unit = ""

    @abstractmethod
    def figure(self, samples: Samples) -> float:
        """Return the figure of one set; NaN where it has none."""

    def update(self, samples: Samples) -> None:
        """Do nothing: sets are averaged by ``sampling.measure``."""

    def compute(self) -> None:
        """Do nothing."""


def diffuses_data(model: BoundModel) -> bool:
    """Return whether a model has a denoiser of the data themselves, not of latents."""
    return model.denoiser is not None and not model.of_latents


def check_diffuses_data(model: BoundModel) -> None:
    """Raise UserError unless the model has a denoiser that acts on the data themselves."""
    if not diffuses_data(model):
        raise UserError(
            f"{type(model).__name__} has no denoiser of the data; this metric needs model=diffusion"
        )
