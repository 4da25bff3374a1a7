"""What samples are measured against: fresh true points, or real images through features."""

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from triptych.callbacks.metrics import named_metrics
from triptych.config.metric import SAMPLE_METRICS
from triptych.config.own_code import defined_at, raised_by
from triptych.data.base import DataModule, Generated
from triptych.data.batch import Split
from triptych.data.captions import Captioned, Embedder
from triptych.diffusion import measures
from triptych.diffusion.draws import Stream, seeded
from triptych.diffusion.measures import Moments
from triptych.errors import UserError
from triptych.files import file_digest
from triptych.models.classifier import Classifier
from triptych.models.metric import OfSamples, Samples
from triptych.run.drawing import choose
from triptych.run.judges import Prompts, inception_features, open_inception, read_statistics
from triptych.run.sampling.measure import Chunks, Features, chunk_seed

PAIRS = 5  # of true sets, for the noise floor
TRIED = 1000  # samples at most, on which metrics of one's own are tried before the first step
FLOOR = 1000  # the first stream of true sets, beyond those that samples are compared with
FEW = 3  # modes whose shares are recorded one by one


def own_metrics(config: Mapping[str, Any]) -> dict[str, OfSamples]:
    """Return the user's own metrics of samples; UserError: a name of ours, or no samples are measured."""
    own = {name: one for name, one in named_metrics(config).items() if isinstance(one, OfSamples)}
    for name in own:
        if name in SAMPLE_METRICS:
            raise UserError(f"metrics.{name}: a built-in metric of samples has this name; choose another")
        if not config["measures"]["n"]:
            raise UserError(f"metrics.{name}: measures.n=0 draws no samples to measure; set measures.n=1000")
    return own


class SampleReference:
    """What samples are compared with, and the user's own metrics of them."""

    files: Mapping[str, str | None] = {}  # digests of what FID is computed by
    prompts: Prompts | None = None  # points have no captions

    def __init__(self, data: Any, n: int, seed: int, own: Mapping[str, OfSamples] | None):
        self.data, self.n, self.seed, self.own, self.shape = data, n, seed, own or {}, tuple(data.shape)

    @cached_property
    def held_items(self) -> list[tuple[Split, Tensor]]:
        """Up to n items of each split that is held out, spread over it: a folder's first are of one class."""
        splits = [self.data.splits[name] for name in ("val", "test")]
        return [(split, choose(min(self.n, len(split)), len(split))) for split in splits]

    @cached_property
    def held(self) -> int:
        """How many true items there are to draw sets from."""
        return sum(len(items) for _, items in self.held_items)

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return what comparisons need of items x (k, *shape), (k, ...) each: no more of them is kept."""
        raise NotImplementedError

    def fill(self, chunks: Chunks, device: torch.device) -> None:
        """Read this process's chunks of what samples are compared with, on ``device``; of pure noise here."""
        self.pure = chunks.fill("noise", self.n, self._noise)

    def compare(self, features: Features, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Return every figure of a set of samples, conditioned on the classes ``labels`` (n,), by name."""
        raise NotImplementedError

    def true_set(self, number: int) -> tuple[Any, Tensor | None]:
        """Return features and classes of up to n true items, held out from what samples are compared with."""
        order = torch.randperm(self.held, generator=torch.Generator().manual_seed(number))[: self.n]
        labels = [split.labels[items] for split, items in self.held_items if split.labels is not None]
        return self.held_features(order), torch.cat(labels)[order] if labels else None

    def held_features(self, rows: Tensor) -> Any:
        """Return the features of some of the items that are held out."""
        raise NotImplementedError

    def floor(self, labelled: bool) -> dict[str, Any]:
        """Compare true sets as samples are, ``labelled`` if these are of classes: what exact ones reach."""
        if self.held < 2:  # which have no distances
            return {"n": self.held}
        figures = []
        for i in range(PAIRS):
            features, labels = self.true_set(i)
            figures.append(self.compare(features, labels if labelled else None, FLOOR + 2 * i + 1))
        return _spread(figures) | {"n": min(self.held, self.n)}

    def prompted(self, features: Features, items: Tensor) -> dict[str, float]:
        """Return shares of samples that match the captions of held-out ``items``."""
        assert self.prompts is not None
        embeddings = None if self.prompts.embedder is None else features["embedding"]
        return self.prompts.compare(embeddings, features["logits"], items)

    def _noise(self, rows: Tensor, chunk: int) -> Tensor:
        seed = chunk_seed(chunk, self.seed, Stream.MEASURED_SAMPLES, 0, 0)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(rows), *self.shape, generator=generator)
        return x.clamp(-1, 1) if len(self.shape) == 3 else x

    def noise(self, labels: Tensor | None, items: Tensor | None) -> dict[str, float]:
        """Measure as much pure noise, as if it were of the classes ``labels`` or captions of ``items``."""
        figures = self.compare(self.pure, labels, 0)
        figures |= {} if items is None else self.prompted(self.pure, items)
        return {name: figure for name, figure in figures.items() if math.isfinite(figure)}

    def _own(self, samples: Samples) -> dict[str, float]:
        figures: dict[str, Any] = {}
        for name, metric in self.own.items():
            with raised_by(f"metrics.{name}"):  # each has a copy, which it may change
                figure = metric.figure(copy.deepcopy(samples))
            try:
                figures[name] = float(figure)
            except (TypeError, ValueError, RuntimeError) as error:
                problem = f"figure gives {str(figure)[:60]!r}; must be a number{defined_at(metric.figure)}"
                raise UserError(f"metrics.{name}: {problem}") from error
        return figures

    def try_own(self, labelled: bool = False) -> None:
        """Measure noise by the user's metrics, as samples of all classes if ``labelled``."""
        if not self.own:
            return
        train, classifier = self.data.splits["train"], getattr(self, "classifier", None)
        n = min(self.n, TRIED, len(train))
        items = torch.arange(n)
        x, true = self._noise(items, 0), train.batch(items).x
        labels = items * self.data.num_classes // n if labelled and self.data.num_classes else None
        seen, logits = (None, None) if classifier is None else classifier.read(x)
        self._own(Samples(x, true, labels, seen, classifier and classifier.read(true)[0], logits))


class PointReference(SampleReference):
    """True points: drawn afresh for every comparison, or training items where no formula draws them."""

    def __init__(self, data: DataModule, n: int, seed: int, own: Mapping[str, OfSamples] | None = None):
        super().__init__(data, n, seed, own)
        self.name = f"{n} fresh points of {data.name}"
        self.true: Tensor | None = None
        if isinstance(data, Generated):
            self.held = n  # there is no limit to fresh points
            return
        train = data.splits["train"]
        if len(data.shape) != 1:
            problem = f"items of shape {data.shape} are neither points (d,) nor images (c, h, w)"
            raise UserError(f"measures.n={n}: {problem}; set measures.n=0")
        if len(train) < n:
            problem = f"data {data.name} has {len(train)} training items to compare with"
            raise UserError(f"measures.n={n}: {problem}; set measures.n={len(train)}")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
        self.true = train.batch(order).x
        self.held_out = torch.cat([split.batch(items).x for split, items in self.held_items])
        self.name = f"{n} training items of {data.name}"

    def _fresh(self, stream: int) -> tuple[Tensor, Tensor | None]:
        x, labels = self.data.draw(self.n, seeded(self.seed, Stream.TRUE_POINTS, stream))
        return x.float(), labels

    def true_set(self, number: int) -> tuple[Any, Tensor | None]:
        if self.true is not None:
            return super().true_set(number)
        x, labels = self._fresh(FLOOR + 2 * number)
        return {"x": x}, labels

    def held_features(self, rows: Tensor) -> Any:
        return {"x": self.held_out[rows]}

    def read(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}

    def compare(self, features: Features, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Compute sliced Wasserstein, energy distance and, of a mixture, the share of each mode."""
        x = features["x"]
        true = self._fresh(repeat)[0] if self.true is None else self.true[: len(x)]
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


class ImageReference(SampleReference):
    """Training images: by a classifier of clean ones, by InceptionV3 for FID, and by metrics of one's own."""

    def __init__(
        self,
        data: DataModule,
        n: int,
        classifier: Classifier | None,
        seed: int,
        inception: str | None = None,
        statistics: str | None = None,
        embedder: Embedder | None = None,
        own: Mapping[str, OfSamples] | None = None,
    ):
        super().__init__(data, n, seed, own)
        self.classifier = classifier
        self.prompts = Prompts(data, embedder) if isinstance(data, Captioned) and classifier else None
        train = data.splits["train"]
        self.order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
        self.inception = None if inception is None else open_inception(inception)
        self.published = None if statistics is None else read_statistics(statistics)
        files = {"inception": inception, "statistics": statistics}
        self.files = {name: file_digest(path) for name, path in files.items() if path is not None}
        self.name = f"{len(self.order)} training images of {data.name}"

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return features, logits and embedding; images too where metrics of one's own measure them."""
        features = {"x": x} if self.own else {}
        if self.classifier is not None:
            features["features"], features["logits"] = self.classifier.read(x)
        if self.inception is not None:
            features["inception"] = inception_features(self.inception, x.to(self.device)).cpu()
        if self.prompts is not None and self.prompts.embedder is not None:
            features["embedding"] = self.prompts.embedder.images(x.cpu())
        return features

    def fill(self, chunks: Chunks, device: torch.device) -> None:
        self.device, splits = device, self.data.splits
        for network in filter(None, (self.classifier, self.inception)):
            network.to(device)
        super().fill(chunks, device)
        train, ((val, val_items), (test, test_items)) = splits["train"], self.held_items

        def held(rows: Tensor, _: int) -> Tensor:
            in_val = rows < len(val_items)
            of_val, of_test = val_items[rows[in_val]], test_items[rows[~in_val] - len(val_items)]
            return torch.cat([val.batch(of_val).x, test.batch(of_test).x])

        self.true = chunks.fill("true", len(self.order), lambda r, _: train.batch(self.order[r]).x)
        self.held_out = chunks.fill("held_out", self.held, held)
        if self.prompts is not None:
            split = splits[self.prompts.split]
            self.captioned = chunks.fill("captions", len(split), lambda r, _: split.batch(r).x)

    @cached_property
    def features(self) -> Tensor | None:
        """The classifier's features of the true images, once all processes have read theirs."""
        return None if self.classifier is None else self.true["features"]

    @cached_property
    def moments(self) -> Moments | None:
        """The published moments of FID's features, or those of the true images."""
        read = self.published is None and self.inception is not None
        return Moments.of(self.true.parts("inception")) if read else self.published

    def compare(self, features: Features, labels: Tensor | None, repeat: int) -> dict[str, float]:
        """Compute Fréchet distance, precision, recall and, where samples have classes, class accuracy."""
        seen = logits = None
        figures: dict[str, float] = {}
        if self.features is not None:
            seen, logits = features["features"], features["logits"]
            figures |= {
                "frechet_distance": measures.frechet_distance(self.features, seen),
                "precision": measures.covered(seen, by=self.features),
                "recall": measures.covered(self.features, by=seen),
            }
            if labels is not None:
                figures["class_accuracy"] = measures.class_accuracy(logits, labels)
        if self.moments is not None:
            moments = Moments.of(features.parts("inception"))
            figures["fid"] = measures.frechet_distance(self.moments, moments)
        if not self.own:
            return figures
        samples = Samples(features["x"], self.true["x"], labels, seen, self.features, logits)
        return figures | self._own(samples)

    def held_features(self, rows: Tensor) -> Any:
        return self.held_out.subset(rows)

    def floor(self, labelled: bool) -> dict[str, Any]:
        return super().floor(labelled) | self._true_prompts()

    def _true_prompts(self) -> dict[str, dict[str, float]]:
        if self.prompts is None:
            return {}
        untrained = self.prompts.untrained
        figures: dict[str, dict[str, float]] = {}
        for after, kind in (("", ~untrained), ("_held_out", untrained)):
            items = kind.nonzero().squeeze(1)
            shares = self.prompted(self.captioned.subset(items), items) if len(items) else {}
            figures |= _spread([{name + after: share for name, share in shares.items()}])
        return figures


def _spread(figures: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    columns = {name: sorted(f[name] for f in figures) for name in figures[0]}
    return {
        name: {"median": column[len(column) // 2], "low": column[0], "high": column[-1]}
        for name, column in columns.items()
        if all(map(math.isfinite, column))
    }
