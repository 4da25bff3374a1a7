"""Draw synthetic captioned pictures: one to three squares, circles or triangles of one colour.

Examples of captions:

    "three red squares"
    "on the left two circles in blue"
    "a triangle painted yellow on the right"

A picture is determined by its attributes and by further random choices, all of them uniform and
discrete.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych.data.base import DataError, SyntheticData
from triptych.data.batch import Split, to_unit
from triptych.data.captions import Captioned
from triptych.data.text import words
from triptych.declare import Ge, Le, Role, Unit
from triptych.diffusion.condition import Condition, Images, Kind
from triptych.diffusion.draws import Stream, hash_seed

SIDE, LEVELS = 16, 16  # pixels of a picture; levels of a colour
LOW = "low"  # name of the condition part that holds the picture at half resolution
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("square", "circle", "triangle"),
    "colour": ("red", "green", "blue", "yellow"),
    "count": ("one", "two", "three"),
    "side": ("left", "right"),
}
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
WIDTHS = ((4, 5, 6), (4, 5, 6), (4,))  # widths in pixels, for pictures of one, two and three shapes
TRIES = 1000  # maximum number of attempts to draw a picture that no other split contains
SHADES = range(12, 16)  # grey levels of shapes
BACKGROUNDS = range(4)  # grey levels of the background
PLACES = ("{0}", "{0} on the {1}", "on the {1} {0}")  # captions without and with the side
PHRASES = (
    "{count} {colour} {shape}",
    "{count} {shape} in {colour}",
    "{count} {shape} painted {colour}",
)
# {word of a caption: (attribute, index of its value)}
WORD_MEANINGS = {
    word: (name, value) for name, values in ATTRIBUTES.items() for value, word in enumerate(values)
} | {f"{shape}s": ("shape", value) for value, shape in enumerate(ATTRIBUTES["shape"])}
WORD_MEANINGS["a"] = ("count", 0)


Combination = tuple[int, ...]  # indices in ``ATTRIBUTES``: shape, colour, count - 1, side
COMBINATIONS: list[Combination] = list(
    product(*(range(len(values)) for values in ATTRIBUTES.values()))
)


def attributes_of(text: str) -> dict[str, int]:
    """Parse a text into {attribute: index of its value in ``ATTRIBUTES``}.

    "a" means the count one, unless the text has another count.
    """
    return dict(
        WORD_MEANINGS[word]
        for word in sorted(words(text), key=lambda word: word != "a")
        if word in WORD_MEANINGS
    )


def compose_caption(
    combination: Combination, phrase: int, position_phrase: int, article: bool
) -> str:
    """Return a caption in one of ``PHRASES`` and ``PLACES``; ``article``: "a" in place of "one"."""
    chosen = {
        name: values[k] for (name, values), k in zip(ATTRIBUTES.items(), combination, strict=True)
    }
    if combination[2]:
        chosen["shape"] += "s"
    elif article:
        chosen["count"] = "a"
    return PLACES[position_phrase].format(PHRASES[phrase].format(**chosen), chosen["side"])


@cache
def shape_mask(shape: str, width: int) -> np.ndarray:
    """Return the pixels of a shape as a mask (width, width) bool.

    In coordinates from -width to width, pixel i has its centre at 2 i + 1 - width.
    """
    u = 2 * np.arange(width)[None] + 1 - width
    v = u.T
    if shape == "square":
        return np.ones((width, width), bool)
    if shape == "circle":
        return u**2 + v**2 <= width**2
    return 2 * abs(u) <= v + width + 1  # a triangle's sides, from its tip at the top to its base


def render_image(combination: Combination, generator: np.random.RandomState) -> np.ndarray:
    """Draw a picture (3, 16, 16) uint8 with the attributes ``combination``.

    Its shapes have one width and stand one below another in one half. Width, positions and grey
    levels are random.
    """
    shape, colour, count, side = combination
    n, widths = count + 1, WIDTHS[count]
    width = widths[generator.randint(len(widths))]
    free = SIDE - n * (width + 1) + 1  # rows beyond the shapes and the gaps between them
    rows = np.sort(generator.permutation(free + n)[:n]) + np.arange(n) * width
    cover = shape_mask(ATTRIBUTES["shape"][shape], width)
    channels = np.array(COLOURS[ATTRIBUTES["colour"][colour]])[:, None, None]
    x = np.full((3, SIDE, SIDE), generator.randint(len(BACKGROUNDS)), np.uint8)
    for row in rows:
        column = side * SIDE // 2 + generator.randint(SIDE // 2 - width + 1)
        shade = SHADES[generator.randint(len(SHADES))]
        region = x[:, row : row + width, column : column + width]
        region[:] = np.where(cover, shade * channels, region)
    return x


def choose_held_out_combinations(n: int, data_seed: int) -> list[tuple[int, int, int]]:
    """Choose ``n`` combinations (shape, colour, count) that are left out of training.

    Any two of them share one attribute at most, so each pair of attributes occurs in training, with
    another third attribute.
    """
    sizes = [len(ATTRIBUTES[name]) for name in ("shape", "colour", "count")]
    combinations = list(product(*map(range, sizes)))
    chosen: list[tuple[int, int, int]] = []
    random = np.random.RandomState(hash_seed(data_seed, Stream.POINTS, 3) % 2**32)
    for i in random.permutation(len(combinations)):
        candidate = combinations[i]
        alike = [sum(map(int.__eq__, candidate, other)) for other in chosen]
        if max(alike, default=0) < 2:
            chosen.append(candidate)
    return chosen[:n]


class CaptionedImages(NamedTuple):
    """Pictures x (n, 3, 16, 16) uint8, their classes (n,) int64, and their captions."""

    x: Tensor
    label: Tensor
    captions: list[str]


def render_images(
    n: int, choices: Sequence[Combination], generator: np.random.RandomState, excluded: set[bytes]
) -> CaptionedImages | None:
    """Draw n captioned pictures of ``choices`` that are not ``excluded``; None if this fails."""
    x, labels, captions = np.empty((n, 3, SIDE, SIDE), np.uint8), [], []
    for i in range(n):
        combination = choices[generator.randint(len(choices))]
        for _ in range(TRIES):
            x[i] = render_image(combination, generator)
            if x[i].tobytes() not in excluded:
                break
        else:
            return None
        labels.append(COMBINATIONS.index(combination))
        phrase, place = generator.randint(len(PHRASES)), generator.randint(len(PLACES))
        captions.append(
            compose_caption(combination, phrase, place, article=bool(generator.randint(2)))
        )
    return CaptionedImages(torch.from_numpy(x), torch.tensor(labels, dtype=torch.int64), captions)


def halve_resolution(values: Tensor) -> Tensor:
    """Halve width and height of pictures (n, C, H, W) of level numbers; the result is uint8.

    Each pixel is the level nearest to the mean of 2 x 2 pixels.
    """
    n, c, h, w = values.shape
    sums = values.long().view(n, c, h // 2, 2, w // 2, 2).sum((3, 5))
    return ((sums + 2) // 4).to(torch.uint8)


class Shapes(Captioned, SyntheticData):
    """RGB pictures with 16 levels, whose 72 classes are the combinations of ``ATTRIBUTES``.

    Conditions: "label", the class; "text", the caption; "low", the picture at half its size. No
    picture of 16 x 16 is in two splits. A few of 8 x 8 are, as different pictures may be equal at
    half their size.

    Args:
        size: 16, or 8 for the pictures at half their size, the first stage of a cascade.
        held_out: number of combinations of shape, colour and count that are left out of training;
            the other splits contain all.
    """

    name = "shapes"
    levels = LEVELS
    num_classes = len(COMBINATIONS)
    attribute_names = tuple(ATTRIBUTES)

    def __init__(
        self,
        size: Annotated[Literal[8, 16], Unit("pixels")] = 16,
        held_out: Annotated[int, Ge(0), Le(6), Role.SPLIT, Unit("combinations")] = 4,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.shape = (3, size, size)
        self.held_out = choose_held_out_combinations(held_out, self.data_seed)
        self.known_as = LOW if size < SIDE else None

    @property
    def conditions(self) -> dict[str, Kind]:
        low: dict[str, Kind] = (
            {LOW: Images((3, SIDE // 2, SIDE // 2))} if self.known_as is None else {}
        )
        return super().conditions | low

    def attributes(self, label: Tensor) -> Tensor:
        return torch.tensor(COMBINATIONS)[label]

    def meaning(self, captions: Sequence[str]) -> Tensor:
        parsed = [attributes_of(caption) for caption in captions]
        return torch.tensor([[values.get(name, -1) for name in ATTRIBUTES] for values in parsed])

    def is_left_out_of_training(self, label: Tensor) -> Tensor:
        return torch.tensor(
            [COMBINATIONS[k][:3] in self.held_out for k in label.tolist()], dtype=torch.bool
        )

    def load(self) -> dict[str, Split]:
        whole, splits, captions = {}, {}, {}
        trained = [
            combination for combination in COMBINATIONS if combination[:3] not in self.held_out
        ]
        known: set[bytes] = set()
        # Draw the training set last, so that its size does not change the test set.
        for stream, name in enumerate(("test", "val", "train")):
            choices = trained if name == "train" else COMBINATIONS
            random = np.random.RandomState(hash_seed(self.data_seed, Stream.POINTS, stream) % 2**32)
            drawn = render_images(self.sizes[name], choices, random, known)
            if drawn is None:
                raise DataError(
                    f"data.{name}_size={self.sizes[name]}: too few pictures are left that no "
                    "other split has; set smaller data.test_size or data.val_size"
                )
            known |= {picture.tobytes() for picture in drawn.x.numpy()}
            captions[name] = drawn.captions
            whole[name] = Split(drawn.x, None, LEVELS)
            splits[name] = self._split(drawn)
        ordered = {name: splits[name] for name in ("train", "val", "test")}
        grammar = " ".join([*WORD_MEANINGS, *PHRASES, *PLACES])
        return self.add_captions(ordered, captions, further_texts=[grammar], whole=whole)

    def _split(self, images: CaptionedImages) -> Split:
        """Return the split at this stage's size; "low" is each 16 x 16 picture at half its size."""
        low = halve_resolution(images.x)
        if self.known_as == LOW:
            return Split(low, Condition(label=images.label), LEVELS)
        return Split(images.x, Condition(label=images.label, low=to_unit(low, LEVELS)), LEVELS)
