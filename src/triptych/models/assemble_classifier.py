"""From a resolved configuration with model=classifier to the classifier."""

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.models.classifier import Classifier
from triptych.models.common import common


def build_classifier(config: dict, data: DataModule) -> Classifier:
    """The classifier with freshly initialised weights."""
    node = dict(config["model"])
    network = build(node.pop("network"), "model.network", shape=data.shape, num_classes=data.num_classes)
    return build(
        node,
        "model",
        network=network,
        schedule=build(config["schedule"], "schedule"),
        process=build(config["process"], "process"),
        **common(config, data),
    )
