"""Try a model, its data and its callbacks on a few items before the first training step."""

import io
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from triptych.callbacks.metrics import item_metrics_callback
from triptych.config.own_code import definition_location, is_user_code
from triptych.data.batch import Batch
from triptych.errors import UserError
from triptych.models.contract import check_output, isolated_evaluation, try_guidance, try_sampler
from triptych.models.denoiser_model import DenoiserModel
from triptych.run.experiment import Experiment
from triptych.run.parsing import error_line
from triptych.run.reopen import open_weights

TRIAL_ITEMS = 4  # number of items on which a model is tried


def try_experiment(experiment: Experiment, device: torch.device) -> None:
    """Try augmentation, model, sampler and metrics on a few items of the first batch.

    Raises UserError for the first of them that fails or returns a wrong shape.
    """
    model, data = experiment.model.to(device), experiment.data
    x, condition, index = data.train_dataloader().batch(0)
    if condition is not None:
        condition = condition[slice(TRIAL_ITEMS)].to(device)
    batch = Batch(x[:TRIAL_ITEMS].to(device), condition, index[:TRIAL_ITEMS].to(device))
    with isolated_evaluation(model):
        if data.augmentations:
            last = data.augmentations[-1]
            check_output("augmentation", last.__call__, batch.x, (len(batch.x), *data.shape))
        model.try_components(batch)
        _try_drawing(experiment)
        _try_metrics(experiment, device)


def _try_drawing(experiment: Experiment) -> None:
    """Try the sampler, guidance and threshold, if the run will draw samples."""
    config, drawing, model = experiment.config, experiment.drawing, experiment.model
    draws = config["samples"]["n"] or experiment.measured
    if drawing is None or not draws or not isinstance(model, DenoiserModel):
        return
    if not drawing.sources:
        wrappers = [key for key in ("threshold", "guidance") if config.get(key)]
        try_guidance(drawing, wrappers, model)
    try_sampler(drawing.sampler, model)


def _try_metrics(experiment: Experiment, device: torch.device) -> None:
    """Try user-supplied metrics: those of items on a few held-out items, of samples on noise."""
    model, splits = experiment.model, experiment.data.splits
    split = splits["val"] if len(splits["val"]) else splits["test"]
    items = split.batch(torch.arange(min(TRIAL_ITEMS, len(split))))
    batch = model.transfer_batch_to_device(items, device, 0)
    item_metrics_callback(model.trainer).try_user_metrics(model, batch)
    if experiment.reference is not None and experiment.drawing is not None:
        experiment.reference.try_user_metrics(experiment.drawing.conditional)


def check_model_loads(experiment: Experiment) -> None:
    """Raise UserError if a newly built model cannot load the state of this model.

    After the fit, the evaluation rebuilds the model in this way.
    """
    state = experiment.model.state_dict()
    try:
        open_weights(experiment.config, experiment.data).load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"model: a newly built model cannot load its state ({error_line(error)}); create all "
            "layers and buffers in __init__"
        ) from error


def check_states(model: torch.nn.Module, callbacks: Sequence[pl.Callback]) -> None:
    """Raise UserError if the state of a model or user-supplied callback is not plain data."""
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor) and not is_lazy(value):
            value = torch.empty(0, dtype=value.dtype)  # Only the dtype matters for the check.
        _check_state_is_plain(value, f"{key} of {type(model).__name__}")
    for callback in callbacks:
        if is_user_code(callback):
            _check_state_is_plain(
                callback.state_dict(), type(callback).__name__, definition_location(type(callback))
            )


def _check_state_is_plain(state: Any, owner: str, location: str = "") -> None:
    """Raise UserError if ``state`` cannot be loaded as tensors and plain data; ``owner`` has it."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise UserError(
            f"{owner}.state_dict(): not plain data; return numbers, text, lists, dicts or common "
            f"tensors{location}"
        ) from error
