"""What samples are compared with to compute their metrics: true points or training images."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from triptych.callbacks.metrics import build_user_metrics
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.own_code import reraise_as_user_error
from triptych.data.base import DataModule, SyntheticData
from triptych.data.batch import Split
from triptych.data.captions import Captioned, Embedder
from triptych.diffusion import measures
from triptych.diffusion.draws import Stream, seeded_generator
from triptych.diffusion.measures import Moments
from triptych.errors import UserError
from triptych.files import file_digest
from triptych.models.classifier import Classifier
from triptych.models.metric import OfSamples, Samples
from triptych.records import Entries
from triptych.run.chunks import Chunks, Features, chunk_seed
from triptych.run.drawing import spread_indices
from triptych.run.judges import (
    CaptionComparison,
    inception_features,
    open_inception,
    read_statistics,
)

PAIRS = 5  # number of pairs of true sets that are compared for the noise floor
MAX_TRIED = 1000  # maximum number of samples on which user-supplied metrics are tried
FLOOR_STREAM = 1000  # random streams from this number on belong to the noise floor
MAX_MODES = 3  # up to this number of modes, the fraction of each mode is recorded


def user_sample_metrics(config: Mapping[str, Any]) -> dict[str, OfSamples]:
    """Build the user-supplied metrics of samples; UserError for the name of a built-in metric."""
    metrics = build_user_metrics(config)
    own = {name: metric for name, metric in metrics.items() if isinstance(metric, OfSamples)}
    taken = sorted(own.keys() & SAMPLE_METRICS.keys())
    if taken:
        raise UserError(
            f"metrics.{taken[0]}: a built-in metric of samples has this name; choose another"
        )
    return own


@dataclass(frozen=True)
class SetConditions:
    """The conditions of a set of n samples.

    Attributes:
        items: (n,) indices of held-out items whose conditions the samples have.
        labels: (n,) classes that replace those of the items, or None.
        captioned: whether samples are compared with the items' captions.
    """

    items: Tensor
    labels: Tensor | None = None
    captioned: bool = False


class SampleReference:
    """The true items that samples are compared with, and the user-supplied metrics.

    A "set" below is a set of at most n items: samples, true items or pure noise.
    """

    name: str  # description for the report
    files: Mapping[str, str | None] = {}  # digests of the files that FID is computed from
    classifier: Classifier | None = None
    prompts: CaptionComparison | None = None

    def __init__(self, data: Any, n: int, seed: int, user_metrics: Mapping[str, OfSamples]):
        self.data, self.n, self.seed, self.user_metrics, self.shape = (
            data,
            n,
            seed,
            user_metrics,
            tuple(data.shape),
        )

    def feature_networks(self) -> list[nn.Module]:
        """Return the networks that compute features of items."""
        return []

    @cached_property
    def held_out_items(self) -> list[tuple[Split, Tensor]]:
        """(split, indices of up to n of its items) for validation and test: the true items."""
        splits = [self.data.splits[name] for name in ("val", "test")]
        return [(split, spread_indices(min(self.n, len(split)), len(split))) for split in splits]

    @cached_property
    def n_held_out(self) -> int:
        """How many held-out items there are to draw true sets from."""
        return sum(len(items) for _, items in self.held_out_items)

    def compute_features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of items x (k, *shape), {name: (k, ...)}."""
        raise NotImplementedError

    def fill(self, chunks: Chunks, device: torch.device) -> None:
        """Compute the features of true items and of pure noise, in this process's chunks only."""
        self.noise_features = chunks.fill("noise", self.n, self._draw_noise)

    def measure(
        self, features: Features, conditions: SetConditions, repeat: int
    ) -> dict[str, float]:
        """Return all metrics of a set of samples, {name: value}.

        ``repeat`` is the number of the set, see ``compare``.
        """
        figures = self.compare(features, conditions.labels, repeat)
        if conditions.captioned:
            figures |= self.caption_matches(features, conditions.items)
        return figures

    def compare(self, features: Any, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Return those metrics of a set of samples that do not depend on captions, {name: value}.

        ``labels`` (n,) are the samples' classes. If the true items are drawn anew for each
        comparison, ``repeat`` selects them.
        """
        raise NotImplementedError

    def caption_matches(self, features: Features, items: Tensor) -> dict[str, float]:
        """Return the fractions of samples that match the captions of the held-out ``items``."""
        assert self.prompts is not None
        embeddings = None if self.prompts.embedder is None else features["embedding"]
        return self.prompts.match_fractions(embeddings, features["logits"], items)

    def held_out_set(self, seed: int) -> tuple[Any, Tensor | None]:
        """Return features and classes of a random set of up to n held-out items.

        The classes are None if the items have no labels.
        """
        order = torch.randperm(self.n_held_out, generator=torch.Generator().manual_seed(seed))[
            : self.n
        ]
        labels = [
            split.labels[items] for split, items in self.held_out_items if split.labels is not None
        ]
        return self.held_out_features(order), torch.cat(labels)[order] if labels else None

    def held_out_features(self, rows: Tensor) -> Any:
        """Return the features of the held-out items with indices ``rows``."""
        raise NotImplementedError

    def noise_floor(self, labelled: bool) -> Entries:
        """Return the metrics between pairs of true sets: the best values that samples can reach.

        With ``labelled``, metrics that need class labels are included.
        """
        if self.n_held_out < 2:  # a single item has no distance to others
            return {"n": self.n_held_out}
        figures = []
        for number in range(PAIRS):
            features, labels = self.held_out_set(number)
            figures.append(
                self.compare(features, labels if labelled else None, FLOOR_STREAM + 2 * number + 1)
            )
        return _median_and_range(figures) | {"n": min(self.n_held_out, self.n)}

    def _draw_noise(self, rows: Tensor, chunk: int) -> Tensor:
        """Draw a chunk of the set of pure noise, (k, *shape)."""
        seed = chunk_seed(chunk, self.seed, Stream.MEASURED_SAMPLES, 0, 0)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(rows), *self.shape, generator=generator)
        return x.clamp(-1, 1) if len(self.shape) == 3 else x

    def noise_metrics(self, conditions: SetConditions) -> dict[str, float]:
        """Return the metrics of pure noise, as if it were samples with these conditions."""
        figures = self.measure(self.noise_features, conditions, 0)
        return {name: figure for name, figure in figures.items() if math.isfinite(figure)}

    def _compute_user_metrics(self, samples: Samples) -> dict[str, float]:
        """Return {name: value} of the user-supplied metrics; each gets a copy of the samples."""
        figures = {}
        for name, metric in self.user_metrics.items():
            with reraise_as_user_error(f"metrics.{name}"):
                figures[name] = float(metric.figure(copy.deepcopy(samples)))
        return figures

    def try_user_metrics(self, labelled: bool = False) -> None:
        """Compute the user-supplied metrics of noise once, so that errors appear before training.

        With ``labelled``, the noise has labels of all classes.
        """
        if not self.user_metrics:
            return
        train = self.data.splits["train"]
        n = min(self.n, MAX_TRIED, len(train))
        items = torch.arange(n)
        x, true = self._draw_noise(items, 0), train.batch(items).x
        labels = items * self.data.num_classes // n if labelled and self.data.num_classes else None
        if self.classifier is None:
            self._compute_user_metrics(Samples(x, true, labels))
            return
        features, logits = self.classifier.features_and_logits(x)
        self._compute_user_metrics(
            Samples(x, true, labels, features, self.classifier.features_and_logits(true)[0], logits)
        )


class PointReference(SampleReference):
    """A reference of true points (n, d); the features of a point are its coordinates."""

    def compute_features(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}

    def true_points(self, n: int, repeat: int) -> Tensor:
        """Return the true points (m, d) that a set of n samples is compared with."""
        raise NotImplementedError

    def compare(self, features: Any, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Return sliced Wasserstein distance, energy distance, mode metrics and users' metrics.

        Mode metrics need data that are a mixture.
        """
        x = features["x"]
        true = self.true_points(len(x), repeat)
        figures = {
            "sliced_wasserstein": measures.sliced_wasserstein(x, true),
            "energy_distance": measures.energy_distance(x, true),
        }
        return (
            figures | self._mode_metrics(x) | self._compute_user_metrics(Samples(x, true, labels))
        )

    def _mode_metrics(self, x: Tensor) -> dict[str, float]:
        """Return how samples are distributed over modes; {} if the data are not a mixture.

        "mode_error" is the total variation distance between the fractions of samples per mode and
        the mixture's weights. With at most ``MAX_MODES`` modes, "mode_k" is the fraction in mode k.
        """
        if self.data.mixture is None:
            return {}
        share = measures.mode_fractions(x, self.data.mixture)
        figures = {"mode_error": 0.5 * (share - self.data.mixture.weights).abs().sum().item()}
        if len(share) <= MAX_MODES:
            figures |= {f"mode_{k + 1}": fraction for k, fraction in enumerate(share.tolist())}
        return figures


class FreshPoints(PointReference):
    """True points that are drawn anew from the known data distribution for each comparison."""

    def __init__(self, data: DataModule, n: int, seed: int, user_metrics: Mapping[str, OfSamples]):
        super().__init__(data, n, seed, user_metrics)
        self.name = f"{n} new points of {data.name}"
        self.n_held_out = n  # Any number of points can be drawn.

    def _draw(self, stream: int) -> tuple[Tensor, Tensor | None]:
        """Draw n points and their labels with the random stream number ``stream``."""
        x, labels = self.data.draw(self.n, seeded_generator(self.seed, Stream.TRUE_POINTS, stream))
        return x.float(), labels

    def true_points(self, n: int, repeat: int) -> Tensor:
        return self._draw(repeat)[0]

    def held_out_set(self, seed: int) -> tuple[Any, Tensor | None]:
        x, labels = self._draw(FLOOR_STREAM + 2 * seed)
        return {"x": x}, labels


class TrainingPoints(PointReference):
    """Training items as true points, for data whose distribution gives no new points."""

    def __init__(self, data: DataModule, n: int, seed: int, user_metrics: Mapping[str, OfSamples]):
        super().__init__(data, n, seed, user_metrics)
        train = data.splits["train"]
        if len(data.shape) != 1:
            raise UserError(
                f"measures.n={n}: items of shape {data.shape} are neither points (d,) nor images "
                "(c, h, w); set measures.n=0"
            )
        if len(train) < n:
            raise UserError(
                f"measures.n={n}: data {data.name} has only {len(train)} training items; set "
                f"measures.n={len(train)}"
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
        self.points = train.batch(order).x
        self.held_out = torch.cat([split.batch(items).x for split, items in self.held_out_items])
        self.name = f"{n} training items of {data.name}"

    def true_points(self, n: int, repeat: int) -> Tensor:
        return self.points[:n]

    def held_out_features(self, rows: Tensor) -> Any:
        return {"x": self.held_out[rows]}


def point_reference(
    data: DataModule, n: int, seed: int, user_metrics: Mapping[str, OfSamples]
) -> PointReference:
    """Return the reference for samples that are points; UserError if there is none."""
    if isinstance(data, SyntheticData):
        return FreshPoints(data, n, seed, user_metrics)
    return TrainingPoints(data, n, seed, user_metrics)


class ImageReference(SampleReference):
    """Training images as true items, with features of a classifier and of InceptionV3.

    The classifier was trained on clean images of the same data.
    """

    def __init__(
        self,
        data: DataModule,
        n: int,
        classifier: Classifier | None,
        seed: int,
        inception: str | None = None,
        statistics: str | None = None,
        embedder: Embedder | None = None,
        user_metrics: Mapping[str, OfSamples] = {},
    ):
        super().__init__(data, n, seed, user_metrics)
        train = data.splits["train"]
        self.order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
        self.name = f"{len(self.order)} training images of {data.name}"
        self.classifier = classifier
        if isinstance(data, Captioned) and classifier is not None:
            self.prompts = CaptionComparison(data, embedder)
        self.inception = None if inception is None else open_inception(inception)
        self.published = None if statistics is None else read_statistics(statistics)
        files = {"inception": inception, "statistics": statistics}
        self.files = {name: file_digest(path) for name, path in files.items() if path is not None}

    def feature_networks(self) -> list[nn.Module]:
        networks: list[nn.Module | None] = [self.classifier, self.inception]
        if self.prompts is not None and self.prompts.embedder is not None:
            networks.append(self.prompts.embedder.network)
        return [network for network in networks if network is not None]

    def compute_features(self, x: Tensor) -> dict[str, Tensor]:
        """Return features of images by the classifier, InceptionV3 and the contrastive model.

        The images themselves are added if there are user-supplied metrics.
        """
        features = {}
        if self.user_metrics:
            features["x"] = x
        if self.classifier is not None:
            features["features"], features["logits"] = self.classifier.features_and_logits(x)
        if self.inception is not None:
            features["inception"] = inception_features(self.inception, x.to(self.device)).cpu()
        if self.prompts is not None and self.prompts.embedder is not None:
            features["embedding"] = self.prompts.embedder.images(x.cpu())
        return features

    def fill(self, chunks: Chunks, device: torch.device) -> None:
        self.device = device
        for network in (self.classifier, self.inception):
            if network is not None:
                network.to(device)
        super().fill(chunks, device)
        self.true_points = chunks.fill("true", len(self.order), self._read_true_images)
        self.held_out = chunks.fill("held_out", self.n_held_out, self._read_held_out_images)
        if self.prompts is not None:
            size = len(self.data.splits[self.prompts.split])
            self.captioned = chunks.fill("captions", size, self._read_captioned_images)

    def _read_true_images(self, rows: Tensor, chunk: int) -> Tensor:
        """Read the training images of a chunk."""
        x: Tensor = self.data.splits["train"].batch(self.order[rows]).x
        return x

    def _read_held_out_images(self, rows: Tensor, chunk: int) -> Tensor:
        """Read the validation and test images of a chunk."""
        (val, val_items), (test, test_items) = self.held_out_items
        in_val = rows < len(val_items)
        of_val, of_test = val_items[rows[in_val]], test_items[rows[~in_val] - len(val_items)]
        return torch.cat([val.batch(of_val).x, test.batch(of_test).x])

    def _read_captioned_images(self, rows: Tensor, chunk: int) -> Tensor:
        """Read the images of a chunk that belong to the held-out captions."""
        assert self.prompts is not None
        x: Tensor = self.data.splits[self.prompts.split].batch(rows).x
        return x

    @cached_property
    def features(self) -> Tensor:
        """The classifier's features of the true images; all ranks must have finished ``fill``."""
        return self.true_points["features"]

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of true images' Inception features, published ones if configured."""
        return self.published or Moments.of(self.true_points.iterate_chunks("inception"))

    def compare(self, features: Any, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Return metrics of the classifier's features, FID from InceptionV3, and users' metrics."""
        figures: dict[str, float] = {}
        if self.classifier is not None:
            figures |= self._compare_classified(features, labels)
        if self.inception is not None:
            moments = Moments.of(features.iterate_chunks("inception"))
            figures["fid"] = measures.frechet_distance(self.moments, moments)
        if self.user_metrics:
            figures |= self._compute_user_metrics(self._samples(features, labels))
        return figures

    def _compare_classified(self, features: Any, labels: Tensor | None) -> dict[str, float]:
        """Return Fréchet distance, precision, recall and, with labels, class accuracy.

        They are computed from the classifier's features and logits.
        """
        of_samples = features["features"]
        figures = {
            "frechet_distance": measures.frechet_distance(self.features, of_samples),
            "precision": measures.covered_fraction(of_samples, reference=self.features),
            "recall": measures.covered_fraction(self.features, reference=of_samples),
        }
        if labels is not None:
            figures["class_accuracy"] = measures.class_accuracy(features["logits"], labels)
        return figures

    def _samples(self, features: Any, labels: Tensor | None) -> Samples:
        """Return the samples with all features, as user-supplied metrics receive them."""
        x, true = features["x"], self.true_points["x"]
        if self.classifier is None:
            return Samples(x, true, labels)
        return Samples(x, true, labels, features["features"], self.features, features["logits"])

    def held_out_features(self, rows: Tensor) -> Any:
        return self.held_out.subset(rows)

    def noise_floor(self, labelled: bool) -> Entries:
        return super().noise_floor(labelled) | self._true_caption_matches()

    def _true_caption_matches(self) -> dict[str, dict[str, float]]:
        """Return the fractions of true images that match their captions, as a noise floor."""
        if self.prompts is None:
            return {}
        untrained = self.prompts.is_left_out_of_training
        figures: dict[str, dict[str, float]] = {}
        for suffix, suitable in (("", ~untrained), ("_held_out", untrained)):
            items = suitable.nonzero().squeeze(1)
            if len(items):
                shares = self.caption_matches(self.captioned.subset(items), items)
                figures |= _median_and_range(
                    [{name + suffix: share for name, share in shares.items()}]
                )
        return figures


def _median_and_range(metrics_by_set: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return {metric: {"median", "low", "high"}} over sets, if it is finite in all sets."""
    spread = {}
    for name in metrics_by_set[0]:
        column = sorted(metrics[name] for metrics in metrics_by_set)
        if all(map(math.isfinite, column)):
            spread[name] = {
                "median": column[len(column) // 2],
                "low": column[0],
                "high": column[-1],
            }
    return spread
