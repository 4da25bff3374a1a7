"""What a run is made of."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from triptych.data.base import DataModule
from triptych.diffusion.sampler import Sampler
from triptych.models.base import BoundModel
from triptych.run.reference import ImageReference, PointReference
from triptych.run.source import Source


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn: a sampler, and the denoiser that it asks, None for the model's own.

    ``sources``: where parts of their conditions come from that are not the held-out items' own.
    """

    sampler: Sampler
    denoiser: nn.Module | None = None
    sources: tuple[Source, ...] = ()


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
