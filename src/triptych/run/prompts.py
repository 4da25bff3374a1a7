"""Measure whether samples are what their captions ask for."""

import torch
from torch import Tensor

from triptych.data.captions import Captioned
from triptych.data.embedder import Embedder


class Prompts:
    """Whether samples are what captions of ``data`` ask for, by a classifier and a contrastive model."""

    def __init__(self, data: Captioned, embedder: Embedder | None):
        self.data, self.split = data, data.condition_split
        self.captions, labels = data.captions[self.split], data.splits[self.split].labels
        assert labels is not None  # those that the classifier was trained on
        self.untrained = data.untrained(labels)
        self.meaning = data.meaning(self.captions)
        self.embedder = embedder
        if embedder is not None:
            place = {caption: i for i, caption in enumerate(self.captions)}
            self.distinct = self.meaning[torch.tensor([*place.values()])]
            self.texts = embedder.texts(data.encode_prompts([*place]).parts["text"])

    def compare(self, embeddings: Tensor | None, logits: Tensor, items: Tensor) -> dict[str, float]:
        """Return shares of samples (n, ...) that match their captions, of ``items`` (n,) of the split.

        "prompt_accuracy": in all attributes that a caption names; "NAME_accuracy": in one of them;
        "retrieval": whose nearest caption, of all in the split, contradicts nothing in their own.
        """
        wanted, predicted = self.meaning[items], self.data.attributes(logits.argmax(1))
        asks = (wanted >= 0).any(1)  # a caption of several classes asks for none: neither right nor wrong
        if not asks.any():
            return {}
        wanted, predicted = wanted[asks], predicted[asks]
        named, same, names = wanted >= 0, wanted == predicted, self.data.attribute_names
        right = {"prompt_accuracy": (same | ~named).all(1).double().mean().item()}
        for i, name in enumerate(names if len(names) > 1 else ()):
            if named[:, i].any():
                right[f"{name}_accuracy"] = same[named[:, i], i].double().mean().item()
        if embeddings is not None:
            nearest = self.distinct[(embeddings[asks] @ self.texts.T).argmax(1)]
            agree = (nearest == wanted) | (nearest < 0) | ~named
            right["retrieval"] = agree.all(1).double().mean().item()
        return right
