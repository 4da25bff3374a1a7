"""Images like a given one, or on the way from one to another: what a decoder makes of their embeddings.

Ramesh et al. 2022, sec. 3.1 (variations) and 3.2 (interpolations).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from triptych.data.batch import to_unit
from triptych.data.captions import Captioned
from triptych.data.embedder import IMAGE, Embedder, slerp
from triptych.data.folder import read_image
from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import Progress
from triptych.errors import UserError
from triptych.run.drawing import Drawing


class EmbeddingSequence:
    """One embedding for each of ``n`` samples in all; of two, those at even steps along their great circle.

    Args:
        embeddings: (1, d) or (2, d).
    """

    name = IMAGE

    def __init__(self, embeddings: Tensor, n: int):
        share = torch.linspace(0, 1, n) if len(embeddings) > 1 else torch.zeros(n)
        first, last = embeddings[0].expand(n, -1), embeddings[-1].expand(n, -1)
        self.left = slerp(first, last, share)

    def __call__(
        self, n: int, condition: Condition | None, generator: torch.Generator, progress: Progress = iter
    ) -> Tensor:
        """Return the embeddings of the next n samples."""
        these, self.left = self.left[:n], self.left[n:]
        return these.to(generator.device)


def interpolate_images(drawing: Drawing, images: Sequence[int | str], n: int) -> EmbeddingSequence:
    """Embed the one or two images of ``like=``, each an item of the test set or a file.

    Raises:
        UserError: a model that is told no embeddings, another number of images, or one that is not there.
    """
    data, key = drawing.data, f"like={[*images]}"
    network = getattr(getattr(drawing.model, "denoiser", None), "network", None)
    if (
        not isinstance(data, Captioned)
        or data.embedder is None
        or IMAGE not in getattr(network, "conditions", ())
    ):
        raise UserError(f"{key}: this model is not conditioned on embeddings of images; pass a decoder's run")
    if len(images) not in (1, 2):
        raise UserError(f"{key}: must be one image, or two to interpolate between")
    return EmbeddingSequence(torch.cat([_embedding(key, data, data.embedder, one) for one in images]), n)


def _embedding(key: str, data: Captioned, embedder: Embedder, one: int | str) -> Tensor:
    """Return the embedding (1, d) of an image file, or of the test item of that number."""
    test = data.splits["test"]
    if isinstance(one, int):
        if not 0 <= one < len(test):
            raise UserError(f"{key}: {one} is no item of the test set; pass 0 to {len(test) - 1}")
        assert test.condition is not None
        return test.condition[torch.tensor([one])].parts[IMAGE].value
    file = Path(one).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: no file {one}; pass an image, or the number of an item of the test set")
    channels, size, _ = data.whole_shape
    shades, levels = torch.from_numpy(read_image(file, size, channels).copy()), data.levels or 256
    image = to_unit((shades.float() * ((levels - 1) / 255)).round().long(), levels)
    return embedder.images(image.unsqueeze(0))
