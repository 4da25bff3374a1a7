"""Describe the metrics of samples, without torch: name, title, unit, direction and version."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from triptych.config.trust import import_class

TARGET = re.compile(r"metrics\.\w+\._target_")
LOWER, HIGHER, NEITHER = "lower is better", "higher is better", ""


@dataclass(frozen=True)
class Metric:
    """The description of a metric of samples.

    ``better`` is the direction: a metric with NEITHER is plotted but not ranked. ``of`` is the kind
    of data: "points", "images", "captions" of images, or "" for a user-supplied metric.
    ``version`` is increased with the definition, as values of two definitions are not comparable.
    """

    name: str
    title: str
    better: str = NEITHER
    of: str = ""
    unit: str = ""
    version: int = 1

    @property
    def label(self) -> str:
        """The title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def ranked_label(self) -> str:
        """The label with the direction: "FID (lower is better)"."""
        return f"{self.label} ({self.better})" if self.better else self.label


SAMPLE_METRICS = {
    metric.name: metric
    for metric in (
        Metric("sliced_wasserstein", "sliced Wasserstein distance", LOWER, "points"),
        Metric("energy_distance", "energy distance", LOWER, "points"),
        Metric("mode_error", "distance of the modes' shares", LOWER, "points"),
        Metric("mode_1", "share of mode 1", NEITHER, "points"),
        Metric("prompt_accuracy", "share of samples that match their caption", HIGHER, "captions"),
        Metric(
            "prompt_accuracy_held_out",
            "share that match captions kept from training",
            HIGHER,
            "captions",
        ),
        Metric(
            "retrieval", "share whose caption the contrastive model retrieves", HIGHER, "captions"
        ),
        Metric("fid", "FID", LOWER, "images"),
        Metric("frechet_distance", "Fréchet distance of features", LOWER, "images"),
        Metric("precision", "precision", HIGHER, "images"),
        Metric("recall", "recall", HIGHER, "images"),
        Metric("class_accuracy", "class accuracy", HIGHER, "images"),
    )
}
# The choice of classes that samples are drawn for also has a version, as metrics of conditional
# samples depend on it.
CLASSES = Metric("classes", "classes that samples are drawn for", version=2)
MEASURES = {**SAMPLE_METRICS, CLASSES.name: CLASSES}


def metric_names(config: Mapping[str, str]) -> list[str]:
    """Return the names of a run's metrics of samples; ``config`` is {dotted key: value}.

    A user-supplied metric is named by its class.
    """
    measures = [value for key, value in config.items() if TARGET.fullmatch(key)]
    if config.get("measures.n", "0") != "0":
        measures += SAMPLE_METRICS
        guided = config.get("guidance._target_", "").endswith(".Classifier")
        if guided or config.get("model.conditional", "false") != "false":
            measures.append(CLASSES.name)
    return measures


def metric_version(metric_name: str) -> int:
    """Return the current version of a metric of samples; 1 if it declares none.

    ``metric_name`` is its name, or the dotted name of its class. Raises UserError if the class is
    not allowed or cannot be imported.
    """
    if "." in metric_name:
        return int(getattr(import_class(metric_name, "metrics"), "version", 1))
    return MEASURES[metric_name].version if metric_name in MEASURES else 1
