"""The objects of one run: its data, its model, how it draws, and what measures its samples."""

from dataclasses import dataclass
from typing import Any

from triptych.data.base import DataModule
from triptych.models.base import BoundModel
from triptych.run.drawing import Drawing


@dataclass(frozen=True)
class Experiment:
    """What a configuration describes, built once.

    Attributes:
        config: resolved and plain.
        drawing: how samples are drawn; None for a model that draws none or was opened from a checkpoint.
        measured: (value of ``measures.over`` or None, how to draw under it), in the order of the values.
        reference: a ``SampleReference``, against which samples are measured; None if none are.
        step: of the checkpoint that the model was opened from.
    """

    config: dict[str, Any]
    data: DataModule
    model: BoundModel
    drawing: Drawing | None = None
    measured: tuple[tuple[Any, Drawing], ...] = ()
    reference: Any = None
    step: int = 0
