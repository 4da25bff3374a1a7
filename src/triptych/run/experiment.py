"""The objects of one run: its data, model, sampler and the reference for its sample metrics."""

from dataclasses import dataclass
from typing import Any

from triptych.data.base import DataModule
from triptych.models.base import BoundModel
from triptych.records import Config
from triptych.run.drawing import Drawing


@dataclass(frozen=True)
class Experiment:
    """The objects that a configuration describes, each built once.

    Attributes:
        config: the resolved configuration as plain data.
        drawing: how samples are drawn. None for a model that is not generative, and for a model
            that was only reopened from a checkpoint.
        measured: pairs (value of ``measures.over`` or None, how to draw samples at this value).
        reference: the ``SampleReference``, the true items that samples are compared with. None
            without sample metrics.
        step: training step of the checkpoint that the model was opened from.
    """

    config: Config
    data: DataModule
    model: BoundModel
    drawing: Drawing | None = None
    measured: tuple[tuple[Any, Drawing], ...] = ()
    reference: Any = None
    step: int = 0
