"""Compute features of samples with networks: InceptionV3 for FID, and matches with captions."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from triptych.data.captions import Captioned, Embedder
from triptych.diffusion.measures import Moments
from triptych.errors import UserError
from triptych.run.items import read_arrays
from triptych.run.parsing import error_line

INCEPTION_BATCH = 50  # images per forward pass of InceptionV3, which resizes them to 299 x 299
FEATURES = 2048


def open_inception(path: str) -> nn.Module:
    """Load the InceptionV3 of FID (Heusel et al. 2017), or raise UserError.

    It maps uint8 images (n, 3, h, w) to features (n, 2048).
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # Check that the file is plain tensors: torch-fidelity would execute code in its pickle.
        torch.load(path, weights_only=True)
        return NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"measures.inception={path}: torch-fidelity is missing; pip install 'triptych[fid]'"
        ) from error
    except Exception as error:  # torch.load may raise any error for a wrong file
        raise UserError(
            f"measures.inception={path}: not the weights of FID's InceptionV3 "
            f"({error_line(error)}); pass pt_inception-2015-12-05-6726825d.pth"
        ) from error


def read_statistics(path: str) -> Moments:
    """Read published FID statistics, ``mu`` (2048,) and ``sigma`` (2048, 2048), from an ``.npz``.

    Raises UserError for any other file.
    """
    arrays = read_arrays(Path(path), ("mu", "sigma"), square_name="sigma") or {"mu": np.zeros(0)}
    if len(arrays["mu"]) != FEATURES or not all(
        np.isfinite(array).all() for array in arrays.values()
    ):
        raise UserError(
            f"measures.statistics={path}: not the statistics of FID; pass an .npz with mu "
            f"({FEATURES},) and sigma ({FEATURES}, {FEATURES}), all finite"
        )
    mu, sigma = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    # The file does not contain the number of images; frechet_distance only checks that it is > 1.
    return Moments(FEATURES, mu, sigma)


@torch.no_grad()
def inception_features(inception: nn.Module, x: Tensor) -> Tensor:
    """Return InceptionV3 features (n, 2048) of images (n, 1 or 3, h, w) in [-1, 1].

    Grey images are expanded to three equal channels.
    """
    shades = (x * 127.5 + 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)
    return torch.cat([inception(part) for part in shades.split(INCEPTION_BATCH)])


class CaptionComparison:
    """A comparison of samples with the captions of ``data`` that they were drawn from.

    ``embedder`` embeds images and texts in one space; None: only a classifier judges.
    """

    def __init__(self, data: Captioned, embedder: Embedder | None):
        self.data, self.split = data, data.condition_split
        self.captions, labels = data.captions[self.split], data.splits[self.split].labels
        assert labels is not None  # the classes that the classifier predicts
        self.is_left_out_of_training = data.is_left_out_of_training(labels)
        self.meaning = data.meaning(self.captions)
        self.embedder = embedder
        if embedder is not None:
            place = {caption: i for i, caption in enumerate(self.captions)}
            self.distinct = self.meaning[torch.tensor([*place.values()])]
            self.texts = embedder.texts(data.encode_prompts([*place]).parts["text"])

    def match_fractions(
        self, embeddings: Tensor | None, logits: Tensor, items: Tensor
    ) -> dict[str, float]:
        """Return the fractions of n samples that match the captions of the items ``items`` (n,).

        "prompt_accuracy": samples whose predicted class matches all attributes in their caption.
        "NAME_accuracy": the same for the attribute NAME alone, if there are several attributes.
        "retrieval": samples whose nearest caption in the split, in the embedding space, contradicts
        no attribute of their own caption; only with ``embeddings`` (n, d).

        ``logits`` (n, classes) are the classifier's.
        """
        meaning, predicted = self.meaning[items], self.data.attributes(logits.argmax(1))
        # A caption that covers several classes names no attribute, so no sample can violate it.
        named = (meaning >= 0).any(1)
        if not named.any():
            return {}
        meaning, predicted = meaning[named], predicted[named]
        mentioned, same, names = meaning >= 0, meaning == predicted, self.data.attribute_names
        shares = {"prompt_accuracy": _fraction_true((same | ~mentioned).all(1))}
        if len(names) > 1:
            for i, name in enumerate(names):
                if mentioned[:, i].any():
                    shares[f"{name}_accuracy"] = _fraction_true(same[mentioned[:, i], i])
        if embeddings is not None:
            nearest = self.distinct[(embeddings[named] @ self.texts.T).argmax(1)]
            agrees = (nearest == meaning) | (nearest < 0) | ~mentioned
            shares["retrieval"] = _fraction_true(agrees.all(1))
        return shares


def _fraction_true(is_right: Tensor) -> float:
    """Return the fraction of true entries."""
    return is_right.double().mean().item()
