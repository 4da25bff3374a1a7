"""What samples are measured against: fresh true points, or real images through a classifier's features."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.config.build import build
from triptych.config.metric import SAMPLE_METRICS
from triptych.data.base import DataModule, Generated
from triptych.data.captions import Captioned
from triptych.data.embedder import Embedder
from triptych.diffusion import measures
from triptych.diffusion.draws import Stream, seeded
from triptych.errors import UserError
from triptych.models.classifier import Classifier
from triptych.models.metric import OfSamples, Samples
from triptych.run.inception import inception_features, open_inception

PAIRS = 5  # of true sets, for the noise floor
FEW = 3  # modes whose shares are recorded one by one
BETTER = {True: "higher", False: "lower", None: ""}


def own_metrics(config: Mapping[str, Any]) -> dict[str, OfSamples]:
    """The user's own metrics of samples that ``config`` names.

    Raises:
        UserError: a name of ours, or no samples are measured.
    """
    named = ((name, node) for name, node in (config.get("metrics") or {}).items() if node)
    built = ((name, build(node, f"metrics.{name}")) for name, node in named)
    own = {name: metric for name, metric in built if isinstance(metric, OfSamples)}
    for name in own:
        if name in SAMPLE_METRICS:
            raise UserError(f"metrics.{name}: a built-in metric of samples has this name; choose another")
        if not config["measures"]["n"]:
            raise UserError(f"metrics.{name}: measures.n=0 draws no samples to measure; set measures.n=1000")
    return own


class SampleReference:
    """What samples are compared with, and the user's own metrics of them."""

    own: Mapping[str, OfSamples]
    shape: tuple[int, ...]
    n: int

    def compare(self, x: Tensor, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Every figure of samples x (n, *shape), conditioned on the classes ``labels`` (n,), by name."""
        raise NotImplementedError

    def prompted(self, x: Tensor, items: Tensor) -> dict[str, float]:
        """Shares of samples x that match the captions of held-out ``items``; {} where data have none."""
        return {}

    def noise(
        self, labels: Tensor | None, items: Tensor | None, generator: torch.Generator
    ) -> dict[str, float]:
        """Every figure of as much pure noise, cut to [-1, 1] where data are images, as if it were
        conditioned on the classes ``labels`` or the captions of ``items``."""
        x = torch.randn(self.n, *self.shape, generator=generator)
        x = x.clamp(-1, 1) if len(self.shape) == 3 else x
        figures = self.compare(x, labels, 0) | ({} if items is None else self.prompted(x, items))
        return {name: figure for name, figure in figures.items() if math.isfinite(figure)}

    def about_own(self) -> dict[str, dict[str, str]]:
        """{name: title, unit, better} of the user's own metrics, for ``summary.json``."""
        return {
            name: {"title": m.title or name, "unit": m.unit, "better": BETTER[m.higher_is_better]}
            for name, m in self.own.items()
        }

    def _own(self, samples: Samples) -> dict[str, float]:
        return {name: _real(name, metric.figure(samples)) for name, metric in self.own.items()}


def _real(name: str, figure: Any) -> float:
    try:
        return float(figure)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"metrics.{name}: figure gives {str(figure)[:60]!r}; must be a number") from error


class PointReference(SampleReference):
    """True points, drawn afresh for every comparison.

    Raises:
        UserError: data that no formula draws.
    """

    def __init__(self, data: DataModule, n: int, seed: int, own: Mapping[str, OfSamples] | None = None):
        if not isinstance(data, Generated):
            raise UserError(
                f"measures.n={n}: data {data.name} is neither images nor drawn by a formula; set measures.n=0"
            )
        self.data, self.n, self.seed, self.own = data, n, seed, own or {}
        self.shape = tuple(data.shape)
        self.name = f"{n} fresh points of {data.name}"

    def truth(self, stream: int) -> Tensor:
        """n true points (n, d)."""
        generator = seeded(self.seed, Stream.TRUE_POINTS, stream)
        return self.data.draw(self.n, generator)[0].float()

    prompts = None  # points have no captions

    def compare(self, x: Tensor, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Sliced Wasserstein, energy distance and, of a mixture, the share of each mode."""
        return self._measure(x, self.truth(repeat), labels)

    def _measure(self, x: Tensor, true: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        figures = {
            "sliced_wasserstein": measures.sliced_wasserstein(x, true),
            "energy_distance": measures.energy_distance(x, true),
        }
        if self.data.mixture is not None:
            weights = self.data.mixture.weights
            share = measures.mode_fractions(x, self.data.mixture)
            figures["mode_error"] = 0.5 * (share - weights).abs().sum().item()
            if len(share) <= FEW:
                figures |= {f"mode_{k + 1}": s for k, s in enumerate(share.tolist())}
        return figures | self._own(Samples(x, true, labels))

    def floor(self) -> dict[str, dict[str, float]]:
        """Each measure between true sets."""
        pairs = [(self.truth(1000 + 2 * i), self.truth(1001 + 2 * i)) for i in range(PAIRS)]
        return _spread([self._measure(a, b) for a, b in pairs])

    def on(self, device: torch.device) -> None:
        """Ready to compare samples of a model on ``device``."""


class Prompts:
    """Whether samples are what their captions ask for, by a classifier and by a contrastive model.

    Args:
        data: of which items the captions are.
        embedder: the contrastive model; None: retrieval is not measured.
    """

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

    def compare(self, x: Tensor, logits: Tensor, items: Tensor) -> dict[str, float]:
        """Shares of samples x (n, *shape) that are right, asked the captions of ``items`` (n,) of the split.

        "prompt_accuracy": in all attributes that a caption names; "NAME_accuracy": in one of them;
        "retrieval": whose nearest caption, of all in the split, says nothing else than the one asked for.
        """
        wanted, predicted = self.meaning[items], self.data.attributes(logits.argmax(1))
        named, same = wanted >= 0, wanted == predicted
        right = {"prompt_accuracy": (same | ~named).all(1).double().mean().item()}
        for i, name in enumerate(self.data.attribute_names):
            if len(self.data.attribute_names) > 1 and named[:, i].any():
                right[f"{name}_accuracy"] = same[named[:, i], i].double().mean().item()
        if self.embedder is not None:
            nearest = self.distinct[(self.embedder.images(x.cpu()) @ self.texts.T).argmax(1)]
            agree = (nearest == wanted) | (nearest < 0) | ~named
            right["retrieval"] = agree.all(1).double().mean().item()
        return right


class ImageReference(SampleReference):
    """Training images: by a classifier of clean ones, by InceptionV3 for FID, and by metrics of one's own.

    The floor is held-out images (validation and test) against the same reference: what a perfect sampler of
    their number would reach.
    """

    def __init__(
        self,
        data: DataModule,
        n: int,
        classifier: Classifier | None,
        seed: int,
        inception: str | None = None,
        embedder: Embedder | None = None,
        own: Mapping[str, OfSamples] | None = None,
    ):
        self.classifier, self.n, self.own, self.shape = classifier, n, own or {}, tuple(data.shape)
        self.prompts = Prompts(data, embedder) if isinstance(data, Captioned) and classifier else None
        order = torch.randperm(len(data.splits["train"]), generator=torch.Generator().manual_seed(seed))[:n]
        self.x = data.splits["train"].batch(order).x
        self.inception = None if inception is None else open_inception(inception)
        held = [data.splits[name] for name in ("val", "test") if len(data.splits[name])]
        batches = [split.batch(torch.arange(min(len(split), n))) for split in held]
        self.held = torch.cat([b.x for b in batches])
        labels = [split.labels[:n] for split in held if split.labels is not None]
        self.held_labels = torch.cat(labels) if labels else None
        self.name = f"{len(self.x)} training images of {data.name}"

    def on(self, device: torch.device) -> None:
        """Ready to compare samples of a model on ``device``: what it is compared with is read there."""
        self.features = None if self.classifier is None else self.classifier.to(device).read(self.x)[0]
        if self.inception is not None:
            self.seen = inception_features(self.inception.to(device), self.x.to(device))

    def prompted(self, x: Tensor, items: Tensor) -> dict[str, float]:
        """Shares of samples that are what the captions of held-out ``items`` ask for."""
        assert self.prompts is not None and self.classifier is not None
        return self.prompts.compare(x, self.classifier.read(x)[1], items)

    def compare(self, x: Tensor, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Fréchet distance, precision, recall and, where classes were asked for, class accuracy."""
        features = logits = None
        figures: dict[str, float] = {}
        if self.classifier is not None and self.features is not None:
            features, logits = self.classifier.read(x)
            covered = measures.precision_recall(self.features, features)
            figures |= {
                "frechet_distance": measures.frechet_distance(self.features, features),
                "precision": covered.precision,
                "recall": covered.recall,
            }
            if labels is not None:
                figures["class_accuracy"] = measures.class_accuracy(logits, labels)
        if self.inception is not None:
            seen = inception_features(self.inception, x.to(self.seen.device))
            figures["fid"] = measures.frechet_distance(self.seen, seen)
        return figures | self._own(Samples(x, self.x, labels, features, self.features, logits))

    def floor(self) -> dict[str, Any]:
        """Each measure of held-out images, as many as there are up to n."""
        figures = []
        for i in range(PAIRS):
            order = torch.randperm(len(self.held), generator=torch.Generator().manual_seed(i))[: self.n]
            labels = None if self.held_labels is None else self.held_labels[order]
            figures.append(self.compare(self.held[order], labels, 0))
        return _spread(figures) | self._true_prompts() | {"n": min(len(self.held), self.n)}

    def _true_prompts(self) -> dict[str, dict[str, float]]:
        """What the pictures that belong to the captions reach themselves."""
        if self.prompts is None:
            return {}
        split, untrained = self.prompts.data.splits[self.prompts.split], self.prompts.untrained
        figures: dict[str, dict[str, float]] = {}
        for after, kind in (("", ~untrained), ("_held_out", untrained)):
            items = kind.nonzero().squeeze(1)
            shares = self.prompted(split.batch(items).x, items) if len(items) else {}
            figures |= {
                name + after: dict.fromkeys(("median", "low", "high"), s) for name, s in shares.items()
            }
        return figures


def _spread(figures: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and range of each figure."""
    pick: Callable[[str], list[float]] = lambda name: sorted(f[name] for f in figures)  # noqa: E731
    return {
        name: {"median": pick(name)[len(figures) // 2], "low": pick(name)[0], "high": pick(name)[-1]}
        for name in figures[0]
        if all(math.isfinite(f[name]) for f in figures)
    }
