"""Metrics of samples: name, title, unit and direction; importable without torch."""

from dataclasses import dataclass

LOWER, HIGHER, NEITHER = "lower is better", "higher is better", ""


@dataclass(frozen=True)
class Metric:
    """A figure of a set of samples; ``better`` is its direction, NEITHER is drawn and never ranked.

    ``of``: "points", "images", "captions" of images, or "" for a user's own.
    """

    name: str
    title: str
    better: str = NEITHER
    of: str = ""
    unit: str = ""

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


SAMPLE_METRICS = {
    metric.name: metric
    for metric in (
        Metric("sliced_wasserstein", "sliced Wasserstein distance", LOWER, "points"),
        Metric("energy_distance", "energy distance", LOWER, "points"),
        Metric("mode_error", "share of samples in the wrong mode", LOWER, "points"),
        Metric("mode_1", "share of mode 1", NEITHER, "points"),
        Metric("prompt_accuracy", "share of samples that match their caption", HIGHER, "captions"),
        Metric(
            "prompt_accuracy_held_out", "share that match captions kept from training", HIGHER, "captions"
        ),
        Metric("retrieval", "share whose caption the contrastive model retrieves", HIGHER, "captions"),
        Metric("fid", "FID", LOWER, "images"),
        Metric("frechet_distance", "Fréchet distance of features", LOWER, "images"),
        Metric("precision", "precision", HIGHER, "images"),
        Metric("recall", "recall", HIGHER, "images"),
        Metric("class_accuracy", "class accuracy", HIGHER, "images"),
    )
}
