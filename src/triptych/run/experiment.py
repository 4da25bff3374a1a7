"""The objects that a run is built from."""

from dataclasses import dataclass
from typing import Any

from triptych.data.base import DataModule
from triptych.models.base import BoundModel
from triptych.run.drawing import Drawing
from triptych.run.reference import ImageReference, PointReference


@dataclass(frozen=True)
class Experiment:
    """The objects of one run.

    Attributes:
        config: resolved, plain.
        drawing: how its samples are drawn at the end; None for a model that was opened again, or draws none.
        measured: (value, drawing) for each value of ``measures.over``; one, of None, where that is null.
        reference: what samples are measured against; None where they are not.
    """

    config: dict[str, Any]
    data: DataModule
    model: BoundModel
    drawing: Drawing | None = None
    measured: tuple[tuple[Any, Drawing], ...] = ()
    reference: PointReference | ImageReference | None = None
