"""The denoiser that samples are drawn with: a run's own, guided and thresholded as its configuration says."""

from triptych.config.build import build
from triptych.config.identity import data_identity, describe
from triptych.data.base import DataModule
from triptych.diffusion.mixture import ExactClassifier
from triptych.errors import UserError
from triptych.models.classifier import Classifier
from triptych.sampling.reopen import Opened, reopen


def guided(model, data: DataModule, config: dict):
    """``model.denoiser`` wrapped as ``config`` says in guidance and threshold; None where it says nothing.

    Raises:
        UserError: guidance that the model cannot have, or by a model of other data or another process.
    """
    guidance, threshold = dict(config.get("guidance") or {}), config.get("threshold") or {}
    if not guidance and not threshold:
        return None
    denoiser = getattr(model, "denoiser", None)
    if denoiser is None:
        raise UserError("guidance, threshold: this model has no denoiser; none is accepted")
    if guidance:
        if guidance["_target_"].endswith(".ClassifierFree") and not model.conditional:
            scale = guidance["scale"]
            raise UserError(
                f"guidance.scale={scale}: this model was trained without labels; guidance=none is accepted, "
                "or a model trained with denoiser.conditional=true"
            )
        for name in set(guidance.get("parts") or ()) - set(data.conditions):
            known = ", ".join(data.conditions)
            raise UserError(
                f"guidance.parts: {name!r} is no part of the data's conditions; {known} is accepted"
            )
        if "classifier" in guidance:
            guidance["classifier"] = _classifier(guidance["classifier"], denoiser, data, config)
        if "weak" in guidance:
            guidance["weak"] = _weak(guidance["weak"], config)
        extra = {key: guidance.pop(key) for key in ("classifier", "weak") if key in guidance}
        denoiser = build(guidance, "guidance", denoiser=denoiser, **extra)
    if threshold:
        denoiser = build(threshold, "threshold", denoiser=denoiser)
    return denoiser.to(model.device)  # of the model in it nothing else is touched: it may be about to train


def open_classifier(key: str, path: str, config: dict, noise: bool) -> Classifier:
    """The classifier of a checkpoint, of the same data and for noisy or for clean images as ``noise`` says.

    Raises:
        UserError: it is not there, is none, or was trained on other data or on other noise.
    """
    opened = _same_data(key, path, config)
    if not isinstance(opened.model, Classifier):
        raise UserError(f"{key}={path}: not a classifier's; a checkpoint of model=classifier is accepted")
    if opened.model.noise != noise:
        seen = "noisy" if opened.model.noise else "clean"
        wanted = "true" if noise else "false"
        raise UserError(f"{key}={path}: trained on {seen} data; one with model.noise={wanted} is accepted")
    return opened.model


def _classifier(path: str, denoiser, data: DataModule, config: dict):
    if path == "exact":
        if data.mixture is None:
            raise UserError("guidance.classifier=exact: the truth of this data is not known; a checkpoint is")
        return ExactClassifier(data.mixture, denoiser.process)
    classifier = open_classifier("guidance.classifier", path, config, noise=True)
    if type(classifier.process) is not type(denoiser.process):
        names = type(classifier.process).__name__, type(denoiser.process).__name__
        raise UserError(f"guidance.classifier={path}: its process is {names[0]}, the model's {names[1]}")
    return classifier


def _weak(path: str, config: dict):
    opened = _same_data("guidance.weak", path, config)
    denoiser = getattr(opened.model, "denoiser", None)
    if denoiser is None:
        raise UserError(f"guidance.weak={path}: has no denoiser; a diffusion model's is accepted")
    return denoiser


def _same_data(key: str, path: str | None, config: dict) -> Opened:
    if path is None:
        raise UserError(f"{key}=null: a checkpoint is accepted, as in guide=.../checkpoints/last.ckpt")
    threads = config["threads"]  # a guide's own count of threads is not this run's

    def adjust(other: dict) -> None:
        other["threads"] = threads
        if data_identity(other["data"]) != data_identity(config["data"]):
            raise UserError(
                f"{key}={path}: trained on {describe(other['data'])}; "
                f"one trained on {describe(config['data'])} is accepted"
            )
        if "root" in config["data"]:
            other["data"]["root"] = config["data"]["root"]  # where it lies now

    try:
        opened = reopen(str(path), adjust=adjust)
        opened.model.requires_grad_(False)
        return opened
    except UserError as error:
        raise UserError(str(error).replace("ckpt=", f"{key}=", 1)) from error
