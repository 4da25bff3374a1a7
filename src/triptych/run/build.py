"""Build an experiment from a resolved configuration; whatever could fail later fails here."""

import copy
from collections.abc import Mapping
from typing import Any

from triptych.config.build import build
from triptych.config.identity import data_identity, describe
from triptych.data.base import DataModule
from triptych.data.build import build_data
from triptych.data.captions import Captioned, Embedder
from triptych.diffusion.condition import AUGMENTATION, Images
from triptych.diffusion.denoiser import Denoiser
from triptych.diffusion.mixture import ExactClassifier
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.wrappers import Wrapper
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.classifier import Classifier
from triptych.models.condition_bits import check_dropped, never_dropped
from triptych.models.metric import OfSamples
from triptych.run.drawing import DRAWING, PROMPTED, Drawing, Experiment, parts_read, set_key
from triptych.run.model import build_model, training_items
from triptych.run.reference import ImageReference, PointReference, own_metrics
from triptych.run.reopen import check_condition_source, drawn_as, open_model_stages, refuse_cascade, reopen


class OtherRuns:
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


def build_experiment(config: dict[str, Any], download: bool) -> Experiment:
    """Build all objects of ``config``, and open each checkpoint that it names, once; or UserError."""
    data = build_data(config, download)
    model = build_model(config, data, open_model_stages(config, data))
    set_teacher(config, model, data, OtherRuns(config))
    return build_drawings(config, data, model)


def build_drawings(config: dict[str, Any], data: DataModule, model: BoundModel) -> Experiment:
    """Build around ``model`` how it draws, and what measures its samples; or UserError."""
    _check_augmentation(model, data)
    others = OtherRuns(config)
    for group in ("guidance", "threshold"):
        if config.get(group) and model.likelihood is not None:
            problem = "a guided or clipped guess is not the score of any density, so it has none"
            raise UserError(f"likelihood with a {group}: {problem}; pass {group}=none")
    drawing = build_drawing(config, model, data, others)
    own = own_metrics(config)
    if not model.draws:
        if own:
            raise UserError(f"metrics.{next(iter(own))}: is of samples, this model draws none; leave it out")
        return Experiment(config, data, model)
    node = config["measures"]
    if not node["n"]:
        return Experiment(config, data, model, drawing)
    measured = _measured(config, drawing, others)
    return Experiment(config, data, model, drawing, measured, _reference(config, data, others, own))


def _check_augmentation(model: BoundModel, data: DataModule) -> None:
    """Refuse a change of items where the network reads a picture, or an embedding, of the unchanged item."""
    read = parts_read(model, data) if any(change.part is None for change in data.augmentations) else ()
    for name in read:
        of_item = isinstance(data.conditions[name], Images) or name in data.computed
        if of_item and name not in PROMPTED:
            problem = f"changes the item and not {name!r} of it, which the network reads"
            raise UserError(f"augmentation: {problem}; pass none, or conditioning_noise")


def build_drawing(config: dict[str, Any], model: BoundModel, data: DataModule, others: OtherRuns) -> Drawing:
    """Build sampler, guidance and threshold of ``config``; UserError for what the model cannot draw with."""
    sampler = build(config["sampler"], "sampler")
    model.check_sampler(sampler)
    wanted, changes = config.get("condition_from") or {}, config.get("stages") or {}
    for name in changes.keys() - wanted.keys():
        known = ", ".join(wanted) or "{}"
        raise UserError(f"stages.{name}: no part of condition_from; choose from {known}")
    sources = {name: _source(config, name, model, data, others) for name in wanted}
    return Drawing(model, data, sampler, guided(model, data, config, others), sources)


def _source(
    config: dict[str, Any], name: str, model: BoundModel, data: DataModule, others: OtherRuns
) -> str | Drawing:
    wanted, change = config["condition_from"], (config.get("stages") or {}).get(name) or {}
    what, earlier = str(wanted[name]), [*wanted][: [*wanted].index(name)]
    key = f"condition_from.{name}={what}"
    if name not in model.conditions:
        known = ", ".join(model.conditions) or "no parts"
        raise UserError(f"{key}: this model is conditioned on {known}; choose from these")
    if what in data.conditions:
        if data.conditions[what] != data.conditions[name]:
            kinds = data.conditions[what], data.conditions[name]
            raise UserError(f"{key}: {what} is {kinds[0]}, {name} is {kinds[1]}; they must be of one kind")
        if change:
            raise UserError(f"stages.{name}={change}: {key} draws nothing; pass {{}}")
        return what
    run = others.open(f"condition_from.{name}", what, stage=True)
    check_condition_source(key, name, run, data, earlier)
    config = drawn_as(f"stages.{name}", run.config, change)
    return build_drawing(config, run.model, run.data, OtherRuns(config))


def set_teacher(config: dict[str, Any], model: Any, data: DataModule, others: OtherRuns) -> None:
    """Open the teacher of ``model``, if it has one."""
    if (teacher := (config.get("objective") or {}).get("teacher")) and not config.get("trained"):
        model.objective.teacher = _teacher(teacher, model, data, others)


def _teacher(path: str, model: Any, data: DataModule, others: OtherRuns) -> Denoiser:
    if model.of_latents:
        raise UserError(f"objective.teacher={path}: a teacher of the data cannot teach latents; pass null")
    taught, opened = model.denoiser, others.open("objective.teacher", path)
    teacher = opened.model.denoiser
    if not isinstance(teacher, Denoiser) or not isinstance(taught, Denoiser):
        raise UserError(f"objective.teacher={path}: has no denoiser; pass a diffusion model's")
    check_process("objective.teacher", path, teacher, taught)
    always = never_dropped(model.label_dropout, parts_read(model, data))  # it has these, too
    gone = [name for name in parts_read(opened.model, opened.data) if name not in always]
    check_dropped(f"objective.teacher={path}", opened.model.label_dropout, gone)
    return teacher


def _measured(config: dict[str, Any], drawing: Drawing, others: OtherRuns) -> tuple[tuple[Any, Drawing], ...]:
    key, values = config["measures"]["over"], config["measures"]["values"]
    if key is None:
        return ((None, drawing),)
    if not values or not key:
        raise UserError("measures.values=[]: must be a list, as in [1,2,4], beside measures.over")
    measured = []
    for value in values:
        at = config
        for one in [key] if isinstance(key, str) else key:
            at = _changed(at, one, value, drawing.sampler)
        measured.append((value, build_drawing(at, drawing.model, drawing.data, others)))
    return tuple(measured)


def _changed(config: dict[str, Any], key: str, value: Any, sampler: Sampler) -> dict[str, Any]:
    config = copy.deepcopy(config)
    if key == "evaluations":
        config["sampler"]["steps"] = max(1, int(value) // sampler.calls)
        return config
    if key.startswith("stages."):
        part, _, rest = key.removeprefix("stages.").partition(".")
        config["stages"] = (stages := dict(config.get("stages") or {})) | {
            part: dict(stages.get(part) or {}) | {rest: value}
        }
        return config
    group, _, name = key.partition(".")
    if group not in (*DRAWING, "condition_from") or not name or not set_key(config, key, value):
        fix = "use evaluations, or one as sampler.steps"
        raise UserError(f"measures.over={key}: not a key of how this run draws; {fix}")
    return config


def _reference(
    config: dict[str, Any], data: DataModule, others: OtherRuns, own: Mapping[str, OfSamples]
) -> PointReference | ImageReference:
    node = config["measures"]
    if len(data.shape) != 3:
        for key in ("classifier", "contrastive", "inception", "statistics"):
            if node.get(key) is not None:
                raise UserError(f"measures.{key}={node[key]}: points are measured without one; pass null")
        return PointReference(data, node["n"], config["seed"], own)
    classifier, inception, statistics = None, node["inception"], node.get("statistics")
    if statistics is not None and inception is None:
        raise UserError(f"measures.statistics={statistics}: needs measures.inception=FILE beside it")
    if node["classifier"] is not None:
        classifier = others.classifier("measures.classifier", node["classifier"], noise=False)
    elif not own and inception is None:
        fix = "pass its checkpoint, a metric of samples of your own, or measures.n=0"
        raise UserError(f"measures.classifier=null: images are measured by a classifier; {fix}")
    embedder = data.embedder
    if (path := node.get("contrastive")) is not None:
        if not isinstance(data, Captioned) or classifier is None:
            problem = "needs captioned data and measures.classifier"
            raise UserError(f"measures.contrastive={path}: {problem}; pass null")
        embedder = Embedder(path, "measures.contrastive")
        embedder.check(data.shape, data.conditions["text"])
    elif embedder is not None and embedder.shape != data.shape:
        embedder = None  # of the whole images: it would take these, the low ones, and see something else
    return ImageReference(data, node["n"], classifier, config["seed"], inception, statistics, embedder, own)


def check_process(key: str, path: str, other: Any, denoiser: Any) -> None:
    """Check that the model that ``key`` refers to has the same noise process as ``denoiser``."""
    if str(other.process) != str(denoiser.process):
        problem = f"its process is {other.process}, the model's {denoiser.process}"
        raise UserError(f"{key}={path}: {problem}; pass one of the same process")


def guided(model: Any, data: DataModule, config: dict[str, Any], others: OtherRuns) -> Any:
    """Wrap ``model.denoiser`` in the guidance and threshold of ``config``; None if there are none."""
    guidance, threshold = config.get("guidance"), config.get("threshold")
    if not guidance and not threshold:
        return None
    if model.denoiser is None:
        raise UserError("guidance, threshold: this model has no denoiser; pass none")
    denoiser = model.denoiser
    if guidance:
        denoiser = _build_guidance(guidance, model, data, others)
        check_guidance(denoiser, model)
    if threshold:
        denoiser = build(threshold, "threshold", denoiser=denoiser)
        check_threshold(denoiser, model, data)
    return denoiser


def _build_guidance(node: Mapping[str, Any], model: Any, data: DataModule, others: OtherRuns) -> Wrapper:
    node, opened = dict(node), {}
    if "classifier" in node:
        opened["classifier"] = _classifier(node.pop("classifier"), model.denoiser, data, others)
    if "weak" in node:
        opened["weak"] = _weak(node.pop("weak"), model, others)
    guidance: Wrapper = build(node, "guidance", denoiser=model.denoiser, **opened)
    return guidance


def check_guidance(guidance: Wrapper, model: Any) -> None:
    """Refuse guidance of another kind of model, or by a guess that training has not taught."""
    name = type(guidance).__name__
    if model.of_latents and not guidance.guides_latents:
        problem = f"{name} needs a model of the data, not of latents"
        raise UserError(f"guidance: {problem}; pass guidance=none or classifier_free")
    if model.conditional:
        read = [part for part in model.conditions if part != AUGMENTATION]
        check_dropped(f"guidance={name}", model.label_dropout, guidance.left_out(read))


def check_threshold(threshold: Any, model: Any, data: DataModule) -> None:
    """Refuse a threshold below the size of the data, which it would cut off; or one of latents."""
    if model.of_latents:
        raise UserError("threshold: latents do not have the data's range; pass threshold=none")
    size = training_items(data, 1000).x.abs()
    if (size > threshold.bound).float().mean() > 0.01:
        problem = f"data reach {size.max():.2g}, guesses would be cut off at {threshold.bound:g}"
        fix = "pass threshold=none, or threshold=static with a higher threshold.bound"
        raise UserError(f"threshold: {problem}; {fix}")


def _classifier(path: str, denoiser: Any, data: DataModule, others: OtherRuns) -> Any:
    if path == "exact":
        if data.mixture is None:
            raise UserError("guidance.classifier=exact: these data have no known density; pass a checkpoint")
        return ExactClassifier(data.mixture, denoiser.process)
    key = "guide" if path and path == others.config.get("guide") else "guidance.classifier"
    classifier = others.classifier(key, path, noise=True)
    check_process(key, path, classifier, denoiser)
    return classifier


def _weak(path: str, model: Any, others: OtherRuns) -> Any:
    key = "guide" if path and path == others.config.get("guide") else "guidance.weak"
    opened = others.open(key, path)
    if opened.model.denoiser is None or opened.model.of_latents:
        raise UserError(f"{key}={path}: has no denoiser of the data; pass a diffusion model's")
    given = model.conditions if model.conditional else ()
    absent = [part for part in parts_read(opened.model, opened.data) if part not in given]
    check_dropped(f"{key}={path}", opened.model.label_dropout, absent)
    return opened.model.denoiser
