"""From a resolved configuration with model=classifier to the classifier."""

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.models.classifier import Classifier


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
        optimizer=build(config["optimizer"], "optimizer"),
        lr_schedule=build(config["lr_schedule"], "lr_schedule"),
        shape=data.shape,
        discrete=data.levels is not None,
        seed=config["seed"],
        repeats=config["bound"]["repeats"],
        val_repeats=config["bound"]["val_repeats"],
    )
