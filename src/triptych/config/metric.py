"""Metrics of samples: name, title, unit, direction and version; importable without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from triptych.config.trust import import_class

TARGET = re.compile(r"metrics\.\w+\._target_")
LOWER, HIGHER, NEITHER = "lower is better", "higher is better", ""


@dataclass(frozen=True)
class Metric:
    """A figure of a set of samples and its direction; one without direction is never ranked.

    ``better`` is the direction: a figure of NEITHER is drawn but not ranked.
    ``of``: "points", "images", "captions" of images, or "" for a user's own. ``version``: changed
    with the definition, as figures of two definitions are not to be compared.
    """

    name: str
    title: str
    better: str = NEITHER
    of: str = ""
    unit: str = ""
    version: int = 1

    @property
    def label(self) -> str:
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
        Metric("mode_error", "share of samples in the wrong mode", LOWER, "points"),
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
# The classes that samples are drawn for have a version, too, as metrics of conditional samples
# depend on them.
CLASSES = Metric("classes", "classes that samples are drawn for", version=2)
MEASURES = {**SAMPLE_METRICS, CLASSES.name: CLASSES}


def metric_names(config: Mapping[str, str]) -> list[str]:
    """Return the names of a run's measures, from its configuration {dotted key: value}.

    A metric of the user's is named by its class.
    """
    measures = [value for key, value in config.items() if TARGET.fullmatch(key)]
    if config.get("measures.n", "0") != "0":
        measures += SAMPLE_METRICS
        guided = config.get("guidance._target_", "").endswith(".Classifier")
        if guided or config.get("model.conditional", "false") != "false":
            measures.append(CLASSES.name)
    return measures


def metric_version(metric_name: str) -> int:
    """Return the current version of a measure; 1 if it declares none.

    ``metric_name``: its name, or the path of its class.
    UserError: the class cannot be imported, or may not be.
    """
    if "." in metric_name:
        return int(getattr(import_class(metric_name, "metrics"), "version", 1))
    return MEASURES[metric_name].version if metric_name in MEASURES else 1
