"""Build all objects of a run from its configuration, so that errors appear before training."""

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
from triptych.records import Config
from triptych.run.drawing import DRAWING, PROMPTED, Drawing, condition_parts_read, set_key
from triptych.run.experiment import Experiment
from triptych.run.guidance import build_guided_denoiser
from triptych.run.model import build_model
from triptych.run.other_runs import OtherRuns, set_teacher
from triptych.run.reference import (
    ImageReference,
    PointReference,
    point_reference,
    user_sample_metrics,
)
from triptych.run.reopen import check_condition_source, open_model_stages, with_changed_sampling


def build_experiment(config: Config, download: bool) -> Experiment:
    """Build all objects of ``config``, and open each checkpoint that it names, once.

    Raises UserError for an invalid value.
    """
    data = build_data(config, download)
    model = build_model(config, data, open_model_stages(config, data))
    set_teacher(config, model, data, OtherRuns(config))
    return build_drawings(config, data, model)


def build_drawings(config: Config, data: DataModule, model: BoundModel) -> Experiment:
    """Build what a run draws samples of ``model`` with, and the reference for their metrics.

    Raises UserError for an invalid value.
    """
    check_augmentation(model, data)
    others = OtherRuns(config)
    drawing = build_drawing(config, model, data, others)
    metrics = user_sample_metrics(config)
    if not model.can_sample:
        return Experiment(config, data, model)
    if not config["measures"]["n"]:
        return Experiment(config, data, model, drawing)
    measured = _samplings_to_measure(config, drawing, others)
    reference = _build_reference(config, data, others, metrics)
    return Experiment(config, data, model, drawing, measured, reference)


def check_augmentation(model: BoundModel, data: DataModule) -> None:
    """Raise UserError if augmentation would change an item but not the image that conditions it."""
    if all(change.part is not None for change in data.augmentations):
        return
    for name in condition_parts_read(model, data):
        of_item = isinstance(data.conditions[name], Images) or name in data.computed
        if of_item and name not in PROMPTED:
            raise UserError(
                f"augmentation: changes the item, but not its {name!r}, which the network also "
                "reads; pass augmentation=none or augmentation=conditioning_noise"
            )


def build_drawing(
    config: Config, model: BoundModel, data: DataModule, other_runs: OtherRuns
) -> Drawing:
    """Build sampler, guidance and threshold of ``config``.

    Raises UserError if the model cannot be sampled with one of them.
    """
    sampler = build(config["sampler"], "sampler")
    model.check_sampler(sampler)
    denoiser = build_guided_denoiser(model, data, config, other_runs)
    return Drawing(
        model, data, sampler, denoiser, _condition_sources(config, model, data, other_runs)
    )


def _condition_sources(
    config: Config, model: BoundModel, data: DataModule, other_runs: OtherRuns
) -> dict[str, str | Drawing]:
    """Return {condition part: its source}, for parts that do not come from held-out items.

    A source is the name of another part that replaces it, or a stage that draws it.
    """
    condition_from: Config = config.get("condition_from", {})
    stages: Config = config.get("stages", {})
    drawn_parts = {name for name, source in condition_from.items() if source not in data.conditions}
    for name in sorted(stages.keys() - drawn_parts):
        raise UserError(
            f"stages.{name}: no run draws this condition; leave it out, or set "
            f"condition_from.{name} to a run"
        )
    sources: dict[str, str | Drawing] = {}
    for name, source in condition_from.items():
        key = f"condition_from.{name}={source}"
        if name not in model.conditions:
            known = ", ".join(model.conditions)
            raise UserError(f"{key}: the model has no condition {name!r}; use one of {{{known}}}")
        if source in data.conditions:
            kind, needed = data.conditions[source], data.conditions[name]
            if kind != needed:
                raise UserError(
                    f"{key}: {source} is {kind}, but {name} needs {needed}; use another part"
                )
            sources[name] = source
            continue
        stage = other_runs.open(f"condition_from.{name}", str(source), as_stage=True)
        check_condition_source(key, name, stage, data, earlier=[*sources])
        drawn = with_changed_sampling(f"stages.{name}", stage.config, stages.get(name, {}))
        sources[name] = build_drawing(drawn, stage.model, stage.data, OtherRuns(drawn))
    return sources


def _samplings_to_measure(
    config: Config, drawing: Drawing, other_runs: OtherRuns
) -> tuple[tuple[Any, Drawing], ...]:
    """Return pairs of a value of ``measures.over`` and the ``Drawing`` with this value."""
    over, values = config["measures"]["over"], config["measures"]["values"]
    if over is None:
        return ((None, drawing),)
    if not values or not over:
        raise UserError(
            "measures.values=[]: measures.over needs values; pass a list, as in [1,2,4]"
        )
    keys: Sequence[str] = [over] if isinstance(over, str) else over
    measured = []
    for value in values:
        changed = copy.deepcopy(config)
        for key in keys:
            _change_sampling_key(changed, key, value, drawing.sampler)
        measured.append((value, build_drawing(changed, drawing.model, drawing.data, other_runs)))
    return tuple(measured)


def _change_sampling_key(config: Config, key: str, value: Any, sampler: Sampler) -> None:
    """Set ``key``, the sampling key that ``measures.over`` names, to one of its values."""
    if key == "evaluations":
        config["sampler"]["steps"] = max(1, int(value) // sampler.calls)
        return
    group, _, name = key.partition(".")
    if group == "stages":
        part, _, stage_key = name.partition(".")
        stages = config.setdefault("stages", {})
        stages[part] = {**stages.get(part, {}), stage_key: value}
        return
    if group not in (*DRAWING, "condition_from") or not name or not set_key(config, key, value):
        raise UserError(
            f"measures.over={key}: not a key of this run's sampling; pass "
            "measures.over=evaluations, or a key such as sampler.steps"
        )


def _build_reference(
    config: Config, data: DataModule, other_runs: OtherRuns, metrics: Mapping[str, OfSamples]
) -> PointReference | ImageReference:
    """Build the reference for sample metrics, with the networks that ``measures`` names."""
    measures, seed = config["measures"], config["seed"]
    if len(data.shape) != 3:
        return point_reference(data, measures["n"], seed, metrics)
    path, inception = measures["classifier"], measures["inception"]
    if path is None and inception is None and not metrics:
        raise UserError(
            "measures.classifier=null: metrics of images need a classifier; pass its checkpoint, "
            "or switch sample metrics off with measures.n=0"
        )
    classifier = None
    if path is not None:
        classifier = other_runs.classifier("measures.classifier", path, noisy=False)
    embedder = _open_embedder(measures.get("contrastive"), data)
    statistics = measures.get("statistics")
    return ImageReference(
        data, measures["n"], classifier, seed, inception, statistics, embedder, metrics
    )


def _open_embedder(path: str | None, data: DataModule) -> Embedder | None:
    """Return the contrastive image-text model for caption metrics: from ``path`` or the data."""
    if path is not None:
        embedder = Embedder(path, "measures.contrastive")
        embedder.check(data.shape, data.conditions["text"])
        return embedder
    if data.embedder is None or data.embedder.shape != data.shape:
        return None  # A model of full-size images does not fit low-resolution images.
    return data.embedder
