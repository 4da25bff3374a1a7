"""The objects of one run: its data, its model, its sampling and the reference of its samples."""

from dataclasses import dataclass
from typing import Any

from triptych.data.base import DataModule
from triptych.models.base import BoundModel
from triptych.run.drawing import Drawing


@dataclass(frozen=True)
class Experiment:
    """The objects that a configuration describes, built once.

    Attributes:
        config: resolved and plain.
        drawing: how samples are drawn; None where none are, or the model was opened again.
        measured: pairs of a value of ``measures.over``, or None, and how to draw under it.
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
