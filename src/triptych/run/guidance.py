"""Wrap a model's denoiser in the configured guidance and threshold."""

from typing import Any

from triptych.config.build import build
from triptych.data.base import DataModule
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.mixture import ExactClassifier
from triptych.diffusion.wrappers import Wrapper
from triptych.errors import UserError
from triptych.models.condition_bits import check_parts_were_dropped
from triptych.models.metric import diffuses_data
from triptych.records import Config
from triptych.run.drawing import condition_parts_read
from triptych.run.model import training_items
from triptych.run.other_runs import OtherRuns, check_process

MAX_CLIPPED = 0.01  # largest fraction of data values that a threshold may cut off


def build_guided_denoiser(
    model: Any, data: DataModule, config: Config, other_runs: OtherRuns
) -> Any:
    """Return ``model.denoiser`` with its guidance and threshold; None if there are none."""
    guidance, threshold = config.get("guidance"), config.get("threshold")
    if not guidance and not threshold:
        return None
    if model.denoiser is None:
        raise UserError(
            "guidance, threshold: model has no denoiser; pass guidance=none threshold=none"
        )
    denoiser = model.denoiser
    if guidance:
        opened = _open_guides(guidance, model, data, other_runs)
        denoiser = build(guidance, "guidance", denoiser=denoiser, **opened)
        check_guidance(denoiser, model)
    if threshold:
        denoiser = build(threshold, "threshold", denoiser=denoiser)
        check_threshold(denoiser, model, data)
    return denoiser


def check_guidance(guidance: Wrapper, model: Any) -> None:
    """Raise UserError for guidance that the model does not support.

    Some guidance does not work on latents. Classifier-free guidance needs a model from whose
    training conditions were dropped at random.
    """
    name = type(guidance).__name__
    if model.of_latents and not guidance.guides_latents:
        raise UserError(
            f"guidance: {name} does not support models of latents; pass guidance=none or "
            "classifier_free"
        )
    if model.conditional:
        read = [part for part in model.conditions if part != AUGMENTATION]
        check_parts_were_dropped(f"guidance={name}", model.label_dropout, guidance.left_out(read))


def check_threshold(threshold: Any, model: Any, data: DataModule) -> None:
    """Raise UserError for a threshold that would clip values of the data, or on latents."""
    if model.of_latents:
        raise UserError(
            "threshold: not supported for latents, as their range is unknown; pass threshold=none"
        )
    size = training_items(data, 1000).x.abs()
    if (size > threshold.bound).float().mean() > MAX_CLIPPED:
        raise UserError(
            f"threshold: would clip at {threshold.bound:g}, but the data reach {size.max():.2g}; "
            "pass threshold=none, or threshold=static with a higher threshold.bound"
        )


def _open_guides(
    guidance: Config, model: Any, data: DataModule, other_runs: OtherRuns
) -> dict[str, Any]:
    """Open the other runs that guidance uses: a classifier, or a weaker version of the model.

    Return them by the guidance's argument names.
    """
    if "classifier" in guidance:
        return {"classifier": _open_classifier(guidance["classifier"], model, data, other_runs)}
    if "weak" in guidance:
        return {"weak": _open_weak_model(guidance["weak"], model, other_runs)}
    return {}


def _open_classifier(path: str, model: Any, data: DataModule, other_runs: OtherRuns) -> Any:
    """Open the classifier at ``path``; "exact" is that of a known density."""
    if path == "exact":
        if data.mixture is None:
            raise UserError(
                "guidance.classifier=exact: these data have no known density; pass a checkpoint"
            )
        return ExactClassifier(data.mixture, model.denoiser.process)
    key = "guidance.classifier"
    classifier = other_runs.classifier(key, path, noisy=True)
    check_process(f"{key}={path}", classifier, model.denoiser)
    return classifier


def _open_weak_model(path: str, model: Any, other_runs: OtherRuns) -> Any:
    """Open the weaker model at ``path``, and return its denoiser."""
    key = "guidance.weak"
    opened = other_runs.open(key, path)
    if not diffuses_data(opened.model):
        raise UserError(f"{key}={path}: has no denoiser of the data; pass a diffusion model")
    given = model.conditions if model.conditional else ()
    missing = [
        name for name in condition_parts_read(opened.model, opened.data) if name not in given
    ]
    check_parts_were_dropped(f"{key}={path}", opened.model.label_dropout, missing)
    return opened.model.denoiser
