"""Samples of a model that was opened again, as ``triptych-sample`` and Python ask for them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from triptych.diffusion.condition import Condition
from triptych.diffusion.draws import Stream, mix
from triptych.errors import UserError
from triptych.run.build import build_drawing
from triptych.run.experiment import Drawing, Experiment
from triptych.run.guided import Guides
from triptych.run.sampling.draw import draw_samples, takes_condition
from triptych.run.sampling.prompts import of_prompts, texts
from triptych.run.stages import condition_parts


def drawing_of(opened: Experiment, values: dict[str, Any]) -> Drawing:
    """How ``opened`` is to be drawn from, on the GPU if there is one.

    Args:
        values: sampler, guidance, threshold, label, prompt, trajectory, as ``configs/sample.yaml`` has them.

    Raises:
        UserError: the model draws nothing, or not in this way.
    """
    model, label = opened.model, values["label"]
    if not model.draws:
        raise UserError(
            f"ckpt={values['ckpt']}: a classifier's, which draws nothing; pass a generative model's"
        )
    if values["trajectory"] is not None and not hasattr(model, "denoiser"):
        raise UserError(f"trajectory={values['trajectory']}: this model has no denoising to show; pass null")
    config = opened.config | {key: values[key] for key in ("sampler", "guidance", "threshold")}
    drawing = build_drawing(config, model, opened.data, Guides(config))
    if label is not None:
        classes = opened.data.num_classes
        if not takes_condition(model, drawing.denoiser) or not classes:
            raise UserError(f"label={label}: this model was trained without labels; pass null")
        if type(label) is not int or not 0 <= label < classes:
            raise UserError(f"label={label}: must be a class from 0 to {classes - 1}")
    if values["prompt"] is not None:
        if label is not None:
            raise UserError(f"label={label}: must be null beside a prompt")
        prompts(opened, values, 1)  # before anything is drawn
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if drawing.denoiser is not None:
        drawing.denoiser.to(model.device)
    return drawing


def prompts(opened: Experiment, values: dict[str, Any], n: int) -> Condition | None:
    """The condition of n samples, where ``values`` has prompts; UserError where the model takes none."""
    if values.get("prompt") is None:  # the end of a run asks for none
        return None
    return of_prompts(texts(values["prompt"]), opened.data, [*condition_parts(opened)], n)


def draw_all(opened: Experiment, drawing: Drawing, values: dict[str, Any]) -> Tensor:
    """``values["n"]`` samples (n, *shape) in data units from ``values["seed"]``, in batches, with a bar."""
    n, most = values["n"], values["batch_size"]
    condition, parts = prompts(opened, values, n), []
    for start in range(0, n, most):
        size = min(most, n - start)
        seed = mix(values["seed"], Stream.SAMPLES, start)
        bar = _bar(f"samples {start + size}/{n}")
        parts.append(
            draw_samples(
                opened.model,
                drawing.sampler,
                opened.data,
                size,
                seed,
                bar,
                values["label"],
                drawing.denoiser,
                None if condition is None else condition[slice(start, start + size)],
                drawing.sources,
            )
        )
    return torch.cat(parts)


def _bar(title: str) -> Callable[[Iterable], Iterable]:
    return lambda steps: tqdm(steps, desc=title, disable=None, leave=False)
