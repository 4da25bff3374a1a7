"""Build an experiment from a resolved configuration, with all checks that could fail later."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.data.build import build_data
from triptych.data.captions import Embedder
from triptych.diffusion.condition import Images
from triptych.diffusion.sampler import Sampler
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.metric import OfSamples
from triptych.run.drawing import DRAWING, PROMPTED, Drawing, parts_read, set_key
from triptych.run.experiment import Experiment
from triptych.run.guidance import guided
from triptych.run.model import build_model
from triptych.run.other_runs import OtherRuns, set_teacher
from triptych.run.reference import ImageReference, PointReference, own_metrics, point_reference
from triptych.run.reopen import check_condition_source, drawn_as, open_model_stages


def build_experiment(config: dict[str, Any], download: bool) -> Experiment:
    """Build all objects of ``config``, and open each checkpoint that it names, once.

    UserError: an object or a checkpoint is refused.
    """
    data = build_data(config, download)
    model = build_model(config, data, open_model_stages(config, data))
    set_teacher(config, model, data, OtherRuns(config))
    return build_drawings(config, data, model)


def build_drawings(config: dict[str, Any], data: DataModule, model: BoundModel) -> Experiment:
    """Build the sampling of ``model``, and the measures of its samples; or raise UserError."""
    check_augmentation(model, data)
    others = OtherRuns(config)
    drawing = build_drawing(config, model, data, others)
    metrics = own_metrics(config)
    if not model.draws:
        return Experiment(config, data, model)
    if not config["measures"]["n"]:
        return Experiment(config, data, model, drawing)
    measured = _measured(config, drawing, others)
    reference = _reference(config, data, others, metrics)
    return Experiment(config, data, model, drawing, measured, reference)


def check_augmentation(model: BoundModel, data: DataModule) -> None:
    """Refuse an augmentation if the network also reads a picture of the unchanged item."""
    if all(change.part is not None for change in data.augmentations):
        return
    for name in parts_read(model, data):
        of_item = isinstance(data.conditions[name], Images) or name in data.computed
        if of_item and name not in PROMPTED:
            problem = f"changes the item and not {name!r} of it, which the network reads"
            raise UserError(f"augmentation: {problem}; pass none, or conditioning_noise")


def build_drawing(config: dict[str, Any], model: BoundModel, data: DataModule, others: OtherRuns) -> Drawing:
    """Build sampler, guidance and threshold of ``config``.

    UserError: the model cannot draw with them.
    """
    sampler = build(config["sampler"], "sampler")
    model.check_sampler(sampler)
    denoiser = guided(model, data, config, others)
    return Drawing(model, data, sampler, denoiser, _sources(config, model, data, others))


def _sources(
    config: dict[str, Any], model: BoundModel, data: DataModule, others: OtherRuns
) -> dict[str, str | Drawing]:
    """Return the sources of a condition's parts: another part, or a stage that draws it."""
    condition_from: dict[str, Any] = config.get("condition_from") or {}
    stages: dict[str, Any] = config.get("stages") or {}
    for name in stages:
        if name not in condition_from:
            known = ", ".join(condition_from) or "{}"
            raise UserError(f"stages.{name}: no part of condition_from; choose from {known}")
    sources: dict[str, str | Drawing] = {}
    for name, source in condition_from.items():
        key = f"condition_from.{name}={source}"
        if name not in model.conditions:
            known = ", ".join(model.conditions) or "no parts"
            raise UserError(f"{key}: this model is conditioned on {known}; choose from these")
        if source in data.conditions:
            kind, needed = data.conditions[source], data.conditions[name]
            if kind != needed:
                raise UserError(f"{key}: {source} is {kind}, {name} is {needed}; they must be of one kind")
            sources[name] = source
            continue
        stage = others.open(f"condition_from.{name}", str(source), stage=True)
        check_condition_source(key, name, stage, data, earlier=[*sources])
        drawn = drawn_as(f"stages.{name}", stage.config, stages.get(name) or {})
        sources[name] = build_drawing(drawn, stage.model, stage.data, OtherRuns(drawn))
    return sources


def _measured(config: dict[str, Any], drawing: Drawing, others: OtherRuns) -> tuple[tuple[Any, Drawing], ...]:
    """Return the sampling at each value of ``measures.over``."""
    over, values = config["measures"]["over"], config["measures"]["values"]
    if over is None:
        return ((None, drawing),)
    if not values or not over:
        raise UserError("measures.values=[]: must be a list, as in [1,2,4], beside measures.over")
    keys: Sequence[str] = [over] if isinstance(over, str) else over
    measured = []
    for value in values:
        changed = copy.deepcopy(config)
        for key in keys:
            _change(changed, key, value, drawing.sampler)
        measured.append((value, build_drawing(changed, drawing.model, drawing.data, others)))
    return tuple(measured)


def _change(config: dict[str, Any], key: str, value: Any, sampler: Sampler) -> None:
    """Change one key of a run's sampling."""
    if key == "evaluations":
        config["sampler"]["steps"] = max(1, int(value) // sampler.calls)
        return
    group, _, name = key.partition(".")
    if group == "stages":
        part, _, stage_key = name.partition(".")
        stages = config["stages"] = config.get("stages") or {}
        stages[part] = {**(stages.get(part) or {}), stage_key: value}
        return
    if group not in (*DRAWING, "condition_from") or not name or not set_key(config, key, value):
        fix = "use evaluations, or one as sampler.steps"
        raise UserError(f"measures.over={key}: not a key of how this run draws; {fix}")


def _reference(
    config: dict[str, Any], data: DataModule, others: OtherRuns, metrics: Mapping[str, OfSamples]
) -> PointReference | ImageReference:
    """Build the reference of samples, with the judges that ``measures`` names."""
    measures, seed = config["measures"], config["seed"]
    if len(data.shape) != 3:
        return point_reference(data, measures["n"], seed, metrics)
    path, inception = measures["classifier"], measures["inception"]
    if path is None and inception is None and not metrics:
        fix = "pass its checkpoint, a metric of samples of your own, or measures.n=0"
        raise UserError(f"measures.classifier=null: images are measured by a classifier; {fix}")
    classifier = None
    if path is not None:
        classifier = others.classifier("measures.classifier", path, noise=False)
    embedder = _embedder(measures.get("contrastive"), data)
    statistics = measures.get("statistics")
    return ImageReference(data, measures["n"], classifier, seed, inception, statistics, embedder, metrics)


def _embedder(path: str | None, data: DataModule) -> Embedder | None:
    """Return the contrastive model that judges captions: that at ``path``, or the data's own."""
    if path is not None:
        embedder = Embedder(path, "measures.contrastive")
        embedder.check(data.shape, data.conditions["text"])
        return embedder
    if data.embedder is None or data.embedder.shape != data.shape:
        return None  # These are low images; the encoder was trained on whole ones.
    return data.embedder
