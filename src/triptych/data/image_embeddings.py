"""Embeddings of the images of another data set, as data points.

They train a prior as in DALL-E 2, a diffusion model that draws image embeddings.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor

from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.build import fingerprint
from triptych.data.captions import IMAGE, Captioned, project_to_sphere
from triptych.declare import FilePath, Role
from triptych.diffusion.condition import Condition, Kind


class ImageEmbeddings(DataModule):
    """The embeddings (d,) of the images of ``base``, each sqrt(d) times a unit vector.

    ``embeddings`` is a run of model=contrastive. Items, splits, order and conditions are those of
    the captioned data ``base`` with these embeddings, without the condition "embedding".
    """

    name = "image_embeddings"
    known_as = IMAGE

    def __init__(
        self, base: Annotated[Any, Role.DATA], embeddings: FilePath, **loading: Any
    ) -> None:
        super().__init__(**loading)
        if not isinstance(base, Captioned):
            raise DataError(
                f"data.base: {type(base).__name__} has no captions; pass captioned data, "
                "such as shapes"
            )
        base.embed(embeddings)
        assert base.embedder is not None
        self.base, self.shape, self.num_classes = base, (base.embedder.width,), base.num_classes

    @property
    def conditions(self) -> dict[str, Kind]:
        return {name: kind for name, kind in self.base.conditions.items() if name != IMAGE}

    def formula(self) -> dict[str, Any]:
        # Embeddings follow from the base data and the encoder, up to rounding.
        return {"base": fingerprint(self.base).data}

    @property
    def encoders(self) -> tuple[str, ...]:
        return self.base.encoders

    def as_condition(self, x: Tensor) -> Tensor:
        return project_to_sphere(x)

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        return self.base.encode_prompts(prompts)

    def load(self) -> dict[str, Split]:
        self.base.setup()
        splits = {}
        for name, split in self.base.splits.items():
            assert split.condition is not None
            x = split.condition.parts[IMAGE].value
            splits[name] = Split(x, split.condition.without(IMAGE), groups=split.groups)
        return splits
