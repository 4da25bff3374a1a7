"""Data with captions, and embeddings of images and captions by a contrastive run.

An embedding here is sqrt(d) times a unit vector of d dimensions, so that its entries are of size
about one, as noise schedules and networks expect.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from triptych.config.trust import import_class
from triptych.data.base import DataError, DataModule
from triptych.data.batch import Split
from triptych.data.cache import MappedRows
from triptych.data.digits import Digits
from triptych.data.folder import ImageFolder
from triptych.data.layout import Layout
from triptych.data.text import TextEncoder
from triptych.declare import FilePath, Role
from triptych.diffusion.condition import Condition, Kind, Part, Tokens, Vectors
from triptych.files import load_tensors
from triptych.networks.contrastive import ContrastiveNetwork

FILE = "encoder.pt"  # the encoder's file in the directory of a run of model=contrastive
ROWS = 512  # number of items that are embedded at once
# Parts of a condition: the embeddings of an image and of its caption, and the caption's tokens.
IMAGE, CAPTION, TEXT = "embedding", "text_embedding", "text"
MAX_CAPTION = 2**16  # maximum number of bytes of a caption's file


class Embedder:
    """The image and text encoders of a contrastive run, with the reported weights, on the CPU.

    Args:
        path: the run's directory, or its file ``encoder.pt``. The file may be untrusted: it is read
            as plain data, its class must be one that a configuration may name, and its weights take
            no more memory than the file.
        key: the configuration key of the path, for error messages.

    Raises:
        DataError: there is no such file, or it contains no encoder.
    """

    def __init__(self, path: FilePath, key: str = "data.embeddings") -> None:
        self.what = f"{key}={path}"
        file = Path(path).expanduser()
        if file.is_dir():
            file = file / FILE
        fix = "pass the directory of a finished run of model=contrastive"
        try:
            stored = load_tensors(file)
            if (
                sum(t.numel() * t.element_size() for t in stored["state"].values())
                > file.stat().st_size
            ):
                raise ValueError("larger than its file")
            kind, shape, text = (
                import_class(stored["_target_"]),
                tuple(stored["shape"]),
                Tokens(*stored["text"]),
            )
            if not issubclass(kind, ContrastiveNetwork):
                raise TypeError(stored["_target_"])
            with torch.device("meta"):  # allocate no memory besides the tensors of the file
                network = kind(shape, {"text": text}, **stored["sizes"])
            network.load_state_dict(stored["state"], assign=True)
        except Exception as error:  # an untrusted file can raise any error
            raise DataError(f"{self.what}: its {FILE} cannot be read; {fix}") from error
        self.name = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        self.network = network.eval().requires_grad_(False)
        self.shape, self.text, self.width = shape, text, network.embedding
        vectors: Kind = Vectors(self.width)
        self.conditions = {IMAGE: vectors, CAPTION: vectors}  # the parts that ``add_to`` adds

    def check(self, shape: tuple[int, ...], text: Kind) -> None:
        """Raise DataError unless the encoder was trained on images and texts of these shapes.

        ``shape``: shape of an image; ``text``: the kind of the texts, with their length and width.
        """
        if self.shape != shape or self.text != text:
            raise DataError(
                f"{self.what}: trained on images {self.shape} with {self.text}, but the data have "
                f"{shape} with {text}; pass a contrastive run on the same data"
            )

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Return embeddings (n, d) of images x (n, C, H, W)."""
        return self._scaled([self.network.images(part) for part in x.split(ROWS)])

    @torch.no_grad()
    def texts(self, text: Part) -> Tensor:
        """Return embeddings (n, d) of texts."""
        return self._scaled(
            [self.network.texts(c.parts["text"]) for c in Condition(text=text).split(ROWS)]
        )

    def _scaled(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self.width), *parts]) * self.width**0.5

    @torch.no_grad()
    def add_to(self, split: Split, images_split: Split) -> Split:
        """Add embeddings of a split's texts and of ``images_split``'s images to its condition."""
        assert split.condition is not None
        rows = torch.arange(len(images_split)).split(ROWS)
        images = self._scaled([self.network.images(images_split.batch(some).x) for some in rows])
        texts = self.texts(split.condition.parts["text"])
        embeddings = Condition(**{IMAGE: images, CAPTION: texts})
        return replace(split, condition=split.condition.merge(embeddings))


def project_to_sphere(embedding: Tensor) -> Tensor:
    """Project embeddings (n, d) onto the sphere of those of images: sqrt(d) e / |e|."""
    size = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return embedding * (embedding.shape[1] ** 0.5 / size)


def slerp(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate spherically between embeddings a and b (n, d), from a at t = 0 to b at t = 1.

    ``fraction`` is t (n,). The result is sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b with the
    angle w between a and b, which have equal lengths (Ramesh et al. 2022, sec. 3.2). It is linear
    if they point in the same direction.
    """
    angle = torch.cosine_similarity(a, b, dim=1).clamp(-1, 1).arccos().unsqueeze(1)
    fraction = fraction.unsqueeze(1)
    near = angle.sin().abs() < 1e-4
    sine = torch.where(near, 1.0, angle.sin())
    weight_a = torch.where(near, 1 - fraction, ((1 - fraction) * angle).sin() / sine)
    weight_b = torch.where(near, fraction, (fraction * angle).sin() / sine)
    return weight_a * a + weight_b * b


class Captioned(DataModule):
    """Base class of data with captions, whose tokens are the part "text" of the conditions.

    A subclass loads its splits and passes them, with their captions, to ``add_captions``.

    Args:
        encoder: the text encoder of captions and prompts.
        embeddings: a run of model=contrastive. Conditions then also have the vectors "embedding",
            of the image, and "text_embedding", of the caption.

    Attributes:
        captions: {split: the caption of each item}, after ``setup``.
        attribute_names: the attributes that a caption may name; a class has one value of each.
    """

    attribute_names: tuple[str, ...] = ("class",)

    def __init__(
        self,
        encoder: Annotated[Any, Role.DATA],
        embeddings: Annotated[FilePath | None, Role.IDENTITY] = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.encoder: TextEncoder = encoder
        if encoder.computes:
            self.computed += (TEXT,)
        self.captions: dict[str, list[str]] = {}
        if embeddings is not None:
            self.embed(embeddings)

    def embed(self, embeddings: FilePath) -> None:
        """Add the embeddings of a run of model=contrastive to conditions; call before ``setup``."""
        self.embedder = Embedder(embeddings)
        self.computed += tuple(self.embedder.conditions)

    @property
    def conditions(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {TEXT: Tokens(self.encoder.length, self.encoder.width)}
        if self.embedder is not None:
            kinds |= self.embedder.conditions
        return super().conditions | kinds

    def add_captions(
        self,
        splits: dict[str, Split],
        captions: dict[str, list[str]],
        error_key: str = "data: caption",
        further_texts: Sequence[str] = (),
        whole: dict[str, Split] | None = None,
    ) -> dict[str, Split]:
        """Return ``splits`` with the tokens of ``captions`` in their conditions.

        Tokens are held in memory once for each distinct caption.

        Args:
            error_key: begins the DataError for a caption that the encoder refuses.
            further_texts: texts with words that prompts may use, besides those of the captions.
            whole: splits with the images to embed; None: those of ``splits``.
        """
        self.captions = captions
        distinct = sorted({caption for some in captions.values() for caption in some})
        self.encoder.learn([*distinct, *further_texts])
        tokens, mask = self.encoder.table(distinct, error_key)
        places = {caption: place for place, caption in enumerate(distinct)}
        result = {}
        for name, split in splits.items():
            rows = np.array([places[caption] for caption in captions[name]], dtype=np.int64)
            value: Any = MappedRows(tokens.numpy(), rows)  # a condition indexes it like a tensor
            mask_rows: Any = MappedRows(mask.numpy(), rows)
            condition = Condition(text=Part(value, mask=mask_rows))
            if split.condition is not None:
                condition = split.condition.merge(condition)
            result[name] = replace(split, condition=condition)
        if self.embedder is not None:
            whole = whole or splits
            self.embedder.check(tuple(whole["train"].values.shape[1:]), self.conditions[TEXT])
            for name, split in result.items():
                result[name] = self.embedder.add_to(split, whole[name])
        return result

    @property
    def encoders(self) -> tuple[str, ...]:
        names = [f"{self.encoder.name}, {self.encoder.length}"]
        if self.embedder is not None:
            names.append(self.embedder.name)
        return tuple(names)

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        tokens, mask = self.encoder.encode(prompts)
        parts = {TEXT: Part(tokens, mask=mask)}
        if self.embedder is not None:
            parts[CAPTION] = Part(self.embedder.texts(parts[TEXT]))
        return Condition(**parts)

    def attributes(self, label: Tensor) -> Tensor:
        """Return the attribute values (n, A) of classes (n,), as whole numbers."""
        return label.unsqueeze(1)

    def meaning(self, captions: Sequence[str]) -> Tensor:
        """Return the attribute values (n, A) that captions state; -1 for those not mentioned."""
        known: dict[str, int] = {}
        for name, split in self.splits.items():
            if split.labels is None:
                continue
            for caption, label in zip(self.captions[name], split.labels.tolist(), strict=True):
                if known.setdefault(caption, label) != label:
                    known[caption] = -1  # several classes share the caption
        return torch.tensor([known.get(caption, -1) for caption in captions]).unsqueeze(1)

    def is_left_out_of_training(self, label: Tensor) -> Tensor:
        """Return for each class whether training leaves it out, (n,) bool."""
        return torch.zeros(len(label), dtype=torch.bool)


class DigitsCaptioned(Captioned, Digits):
    """``Digits`` with captions such as "the digit seven".

    Each item's caption has one of the ``phrasings``, chosen at random with a fixed seed.
    """

    name = "digits_captioned"
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    phrasings = ("{}", "the digit {}", "a handwritten {}", "the number {} by hand")

    def load(self) -> dict[str, Split]:
        splits = super().load()
        captions = {}
        for seed, (name, split) in enumerate(splits.items()):
            assert split.labels is not None
            phrasing_numbers = np.random.RandomState(seed).randint(
                len(self.phrasings), size=len(split)
            )
            pairs = zip(phrasing_numbers, split.labels.tolist(), strict=True)
            captions[name] = [self.phrasings[w].format(self.names[k]) for w, k in pairs]
        return self.add_captions(splits, captions)


class CaptionedFolder(Captioned, ImageFolder):
    """Images under root, each with its caption in a text file: ``red.png`` and ``red.txt``.

    Raises DataError for a missing or empty caption file, or one that is not UTF-8.
    """

    name = "captioned_folder"

    def load(self) -> dict[str, Split]:
        return self.add_captions(super().load(), self._texts, "data.root: caption")

    def accept(self, layout: Layout, parts: dict[str, np.ndarray]) -> None:
        captions = [read_caption(self.root / file) for file in layout.files]
        self._texts = {name: [captions[i] for i in part] for name, part in parts.items()}


def read_caption(image: Path) -> str:
    """Return the caption of an image, on one line; DataError if there is none."""
    file = image.with_suffix(".txt")
    try:
        with open(file, "rb") as stream:
            text = " ".join(stream.read(MAX_CAPTION + 1).decode("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.root: cannot read {file}: {error}") from error
    if not 0 < len(text) <= MAX_CAPTION:
        raise DataError(
            f"data.root: {file} has {len(text)} characters; a caption must have 1 to {MAX_CAPTION}"
        )
    return text
