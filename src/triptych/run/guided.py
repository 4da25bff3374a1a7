"""Wrap a model's denoiser in the guidance and threshold of its configuration."""

import math
from collections.abc import Sequence
from typing import Any

from triptych.config.build import build
from triptych.config.identity import data_identity, describe
from triptych.data.base import DataModule
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.mixture import ExactClassifier
from triptych.errors import UserError
from triptych.models.classifier import Classifier
from triptych.models.condition_bits import check_dropped
from triptych.run.drawing import parts_read
from triptych.run.experiment import Experiment
from triptych.run.model import training_items
from triptych.run.reopen import refuse_cascade, reopen


class Guides:
    """Other runs that a configuration refers to, each opened once per role."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self._opened: dict[tuple[str, bool], Experiment] = {}

    def open(self, key: str, path: str | None, stage: bool = False) -> Experiment:
        """Open a run of the same data or, as a ``stage``, one that draws part of a condition."""
        if path is None:
            raise UserError(f"{key}=null: must be a checkpoint, as in guide=.../checkpoints/last.ckpt")
        own = self.config

        def adjust(other: dict[str, Any]) -> None:
            if stage:
                refuse_cascade(other)
            elif data_identity(other["data"]) != data_identity(own["data"]):
                fix = f"pass one trained on {describe(own['data'])}"
                raise UserError(f"{key}={path}: trained on {describe(other['data'])}; {fix}")
            elif "root" in own["data"]:
                other["data"]["root"] = own["data"]["root"]  # where it lies now
            other["threads"] = own["threads"]  # another run's own count of threads is not this run's

        if (path, stage) not in self._opened:
            self._opened[path, stage] = opened = reopen(str(path), adjust=adjust, key=key)
            opened.model.requires_grad_(False)
        return self._opened[path, stage]

    def classifier(self, key: str, path: str | None, noise: bool) -> Classifier:
        """Open a classifier of the same data, for noisy (``noise``) or clean images."""
        model = self.open(key, path).model
        if not isinstance(model, Classifier):
            raise UserError(f"{key}={path}: not a classifier's; pass a checkpoint of model=classifier")
        if model.noise != noise:
            problem = f"trained on {'noisy' if model.noise else 'clean'} data"
            raise UserError(f"{key}={path}: {problem}; pass one with model.noise={str(noise).lower()}")
        return model


def check_process(key: str, path: str, other: Any, denoiser: Any) -> None:
    """Check that the model that ``key`` refers to has the same noise process as ``denoiser``."""
    if str(other.process) != str(denoiser.process):
        raise UserError(f"{key}={path}: its process is {other.process}, the model's {denoiser.process}")


def guided(model: Any, data: DataModule, config: dict[str, Any], guides: Guides) -> Any:
    """Wrap ``model.denoiser`` in the guidance and threshold of ``config``; None if there are none."""
    guidance, threshold = dict(config.get("guidance") or {}), config.get("threshold") or {}
    if not guidance and not threshold:
        return None
    denoiser = getattr(model, "denoiser", None)
    if denoiser is None:
        raise UserError("guidance, threshold: this model has no denoiser; pass none")
    if model.of_latents and threshold:
        raise UserError("threshold: latents do not have the data's range; pass threshold=none")
    if guidance:
        free = guidance["_target_"].endswith(".ClassifierFree")
        if model.of_latents and not free:
            problem = f"{guidance['_target_'].rpartition('.')[2]} needs a model of the data, not of latents"
            raise UserError(f"guidance: {problem}; pass guidance=none or classifier_free")
        if free and not model.conditional:
            problem = f"guidance.scale={guidance['scale']}: this model was trained without labels"
            fix = "pass guidance=none, or a model trained with model.conditional=true"
            raise UserError(f"{problem}; {fix}")
        if guidance.get("rescale") and math.prod(model.event) == 1:
            rescale = f"guidance.rescale={guidance['rescale']}"
            raise UserError(f"{rescale}: an item of one number has no standard deviation; pass 0")
        parts, network = guidance.get("parts"), getattr(denoiser, "network", None)  # none: exact
        read = getattr(network, "conditions", data.conditions)
        read = [name for name in read if name != AUGMENTATION]
        for name in set(parts or ()) - set(read):
            problem = f"{name!r} is no part of the condition that the model reads"
            raise UserError(f"guidance.parts: {problem}; choose from {', '.join(read)}")
        # what asks it without a condition
        alone = guidance["_target_"].endswith(".Classifier") or (free and guidance["scale"] != 1)
        if alone and model.conditional and network is not None:
            gone = [name for name in read if parts is None or name in parts]
            check_dropped(f"guidance.scale={guidance['scale']}", getattr(model, "label_dropout", 1.0), gone)
        extra = {}
        if "classifier" in guidance:
            extra["classifier"] = _classifier(guidance.pop("classifier"), denoiser, data, guides)
        if "weak" in guidance:
            extra["weak"] = _weak(guidance.pop("weak"), guides, read if model.conditional else ())
        denoiser = build(guidance, "guidance", denoiser=denoiser, **extra)
    if threshold:
        denoiser = build(threshold, "threshold", denoiser=denoiser)
        bound, size = getattr(denoiser, "bound", 1.0), training_items(data, 1000).x.abs()
        if (size > bound).float().mean() > 0.01:
            problem = f"data reach {size.max():.2g}, and guesses would be cut off at {bound:g}"
            fix = "pass threshold=none, or threshold=static with a higher threshold.bound"
            raise UserError(f"threshold: {problem}; {fix}")
    return denoiser


def _classifier(path: str, denoiser: Any, data: DataModule, guides: Guides) -> Any:
    if path == "exact":
        if data.mixture is None:
            raise UserError("guidance.classifier=exact: these data have no known density; pass a checkpoint")
        return ExactClassifier(data.mixture, denoiser.process)
    key = "guide" if path and path == guides.config.get("guide") else "guidance.classifier"
    classifier = guides.classifier(key, path, noise=True)
    check_process(key, path, classifier, denoiser)
    return classifier


def _weak(path: str, guides: Guides, given: Sequence[str] = ()) -> Any:
    key = "guide" if path and path == guides.config.get("guide") else "guidance.weak"
    opened = guides.open(key, path)
    denoiser = getattr(opened.model, "denoiser", None)
    if denoiser is None or opened.model.of_latents:
        raise UserError(f"{key}={path}: has no denoiser of the data; pass a diffusion model's")
    gone = [name for name in parts_read(opened.model, opened.data) if name not in given]
    check_dropped(f"{key}={path}", getattr(opened.model, "label_dropout", 1.0), gone)
    return denoiser
