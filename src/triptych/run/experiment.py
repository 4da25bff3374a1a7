"""The objects that a run is built from."""

from dataclasses import dataclass
from typing import Any

from triptych.data.base import DataModule
from triptych.models.base import BoundModel
from triptych.run.drawing import Drawing
from triptych.run.reference import ImageReference, PointReference


@dataclass(frozen=True)
class Experiment:
    """The objects of one run."""

    config: dict[str, Any]  # resolved, plain
    data: DataModule
    model: BoundModel
    drawing: Drawing | None = None  # of its samples; None for a model that was opened again, or draws none
    measured: tuple[tuple[Any, Drawing], ...] = ()  # (value of ``measures.over`` or None, drawing)
    reference: PointReference | ImageReference | None = None  # of what is measured
