"""Text as tokens: what a caption or a prompt becomes before a network is told it.

An encoder is fixed while a diffusion model trains (Saharia et al. 2022, sec. 2.1: "frozen text encoders"), so
a text is encoded once and its tokens are kept.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.config.nearest import nearest
from triptych.data.base import DataError
from triptych.declare import Count, declared

WORD = re.compile(r"[\w'-]+")


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return [word for match in WORD.findall(text.lower()) if (word := match.strip("'-_"))]


@declared("data.encoder", DataError)
class TextEncoder(ABC):
    """Texts -> tokens (n, length, width) float32, with a mask (n, length) of those that are there.

    ``name`` says what the tokens follow from beside the text: encoders of one name give the same tokens.
    """

    name: str
    length: int
    width: int

    def learn(self, texts: Iterable[str]) -> None:  # noqa: B027  # most have none
        """Learn a vocabulary from all captions of the data, before the first is encoded; by default none."""

    @abstractmethod
    def pieces(self, text: str) -> list[int] | list[str]:
        """Return what a text is cut into, one piece a token; DataError for what cannot be encoded."""

    @abstractmethod
    def embed(self, pieces: list[Any]) -> tuple[Tensor, Tensor]:
        """Return (tokens, mask) of texts, of which each has from 1 to ``length`` pieces."""

    def encode(self, texts: Sequence[str], what: str = "prompt") -> tuple[Tensor, Tensor]:
        """Encode texts as (tokens (n, length, width), mask (n, length)); tokens are 0 where there are none.

        Raises:
            DataError: a text without a word, of more than ``length`` tokens, or with a word that is unknown;
                ``what`` the texts are is its key.
        """
        pieces = []
        for text in texts:
            key = f"{what}={text[:80]!r}"
            if not words(text):
                raise DataError(f"{key}: no word in it; needs a text of one word or more")
            try:
                pieces.append(self.pieces(text))
            except DataError as error:
                raise DataError(f"{key}: {error}") from error
            if (tokens := len(pieces[-1])) > self.length:
                raise DataError(f"{key}: {tokens} tokens; at most {self.length}, or set data.encoder.length")
        return self.embed(pieces)


class Words(TextEncoder):
    """Words as one-hot vectors over the data's own vocabulary, at most ``length`` in a text.

    A linear layer of a one-hot vector is a row of its matrix, so that the first layer of the network that is
    told these tokens is an embedding of words, trained with it.
    """

    def __init__(self, length: Count = 12):
        self.length = length
        self.learn(())

    def learn(self, texts: Iterable[str]) -> None:
        self.vocabulary = sorted({word for text in texts for word in words(text)})
        self.name, self.width = f"words {' '.join(self.vocabulary)}", len(self.vocabulary)
        self._place = {word: i for i, word in enumerate(self.vocabulary)}

    def pieces(self, text: str) -> list[int]:
        for word in words(text):
            if word not in self._place:
                raise DataError(
                    f"no caption of the data has the word {word!r}, {nearest(word, self.vocabulary)}"
                )
        return [self._place[word] for word in words(text)]

    def embed(self, pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(len(pieces), self.length, self.width)
        mask = torch.zeros(len(pieces), self.length, dtype=torch.bool)
        there = [(i, j, word) for i, cut in enumerate(pieces) for j, word in enumerate(cut)]
        item, place, word = torch.tensor(there, dtype=torch.int64).view(-1, 3).T
        tokens[item, place, word], mask[item, place] = 1.0, True
        return tokens, mask
