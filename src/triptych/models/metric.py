"""Base classes of user-defined metrics, which are reported beside the bound.

`PerItem` is a metric of the items of a split, `OfSamples` one of generated samples.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from triptych.data.batch import Batch
from triptych.declare import declared
from triptych.errors import UserError
from triptych.models.accounting import ItemAverages, count_and_sums
from triptych.models.base import BoundModel


@declared("metrics")
class PerItem(ItemAverages):
    """Base class of a metric of items: the mean and standard error of ``values`` over a split.

    ``higher_is_better`` (True, False, None) is the attribute of torchmetrics; the report shows it.
    Random numbers in ``values`` follow from the seed, the process and the batch's position.
    ``version`` is a whole number, which results record; increase it when you change the definition.

    Any ``torchmetrics.Metric`` whose ``update`` takes ``(model, batch)`` works as well; its
    ``compute`` returns a number, or {"mean", "stderr", "n"}. A method ``check(model)``, if there is
    one, is called before training and may refuse the model.
    """

    version = 1

    def __init__(self) -> None:
        super().__init__(("value",))

    @abstractmethod
    def values(self, model: BoundModel, batch: Batch) -> Tensor:
        """Return one number per item, (B,); items with NaN are not counted."""

    # The base class's ``update`` takes rows.
    def update(self, model: BoundModel, batch: Batch) -> None:  # type: ignore[override]
        """Add the items of a batch; ValueError if ``values`` does not have shape (B,)."""
        values, items = self.values(model, batch), len(batch.x)
        if values.shape != (items,):
            raise ValueError(
                f"{type(self).__name__}.values returned shape {tuple(values.shape)}; must be a "
                f"tensor of shape ({items},), one number per item"
            )
        self.sums[0] += count_and_sums(values.detach()[~values.isnan()].double())

    def compute(self) -> dict[str, Any]:
        """Return {"mean", "stderr", "n"}; the mean is None if no item has a number."""
        return self.figures().get("value", {"mean": None, "stderr": None, "n": 0})


@dataclass(frozen=True)
class Samples:
    """A set of samples and at least as many true items, both (n, *shape) in the model's units.

    ``labels``: the classes (n,) that the samples were drawn for, or None. With
    ``measures.classifier``, ``features`` and ``true_features`` (n, f) are the classifier's features
    of both, and ``logits`` (n, classes) those of the samples; else they are None.
    """

    x: Tensor
    true: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None
    true_features: Tensor | None = None
    logits: Tensor | None = None


@declared("metrics")
class OfSamples(Metric):
    """Base class of a metric of a set of samples, which a subclass computes in ``figure``.

    The subclass also sets ``title``, ``unit`` and ``higher_is_better``. The metric is computed
    together with the built-in metrics of ``measures``: ``measures.repeats`` times at each value of
    ``measures.over``. For comparison it is also computed for pure noise and between two sets of
    true items. Its name is its key under ``metrics``.
    """

    full_state_update = False
    version = 1  # increase it when the definition of ``figure`` changes
    title = ""
    unit = ""

    @abstractmethod
    def figure(self, samples: Samples) -> float:
        """Return the metric of one set of samples; NaN if it is not defined."""

    def update(self, samples: Samples) -> None:
        """Do nothing: ``run.measure`` calls ``figure`` and averages over sets."""

    def compute(self) -> None:
        """Do nothing, like ``update``."""


def diffuses_data(model: BoundModel) -> bool:
    """Return whether a model has a denoiser of the data themselves, not of latents."""
    return model.denoiser is not None and not model.of_latents


def check_diffuses_data(model: BoundModel) -> None:
    """Raise UserError unless the model has a denoiser that acts on the data themselves."""
    if not diffuses_data(model):
        raise UserError(
            f"{type(model).__name__} has no denoiser of the data; this metric needs model=diffusion"
        )
