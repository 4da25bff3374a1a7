"""Samples of opened runs, for ``triptych-sample`` and Python."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.config.check import check_guide
from triptych.data.augment import ConditioningNoise, noise_numbers
from triptych.data.captions import IMAGE, Captioned, slerp
from triptych.diffusion.condition import AUGMENTATION, Condition, Part
from triptych.diffusion.draws import Stream, mix
from triptych.errors import UserError
from triptych.models.condition_bits import check_dropped
from triptych.run.build import OtherRuns, build_drawing
from triptych.run.drawing import Drawing, Experiment, parts_read
from triptych.run.reopen import drawn_as, open_stages
from triptych.terminal import progress_bar

SAMPLES = "samples"


def drawing_of(opened: Experiment, values: dict[str, Any]) -> Drawing:
    """Prepare to draw from ``opened`` as ``values`` of ``configs/sample.yaml`` say; or UserError."""
    model = opened.model
    check_guide(values)
    if not model.draws:
        fix = "pass a generative model's"
        raise UserError(f"ckpt={values['ckpt']}: a classifier's, which draws nothing; {fix}")
    if values["trajectory"] is not None and model.denoiser is None:
        raise UserError(f"trajectory={values['trajectory']}: this model has no denoising to show; pass null")
    config = opened.config | {key: values[key] for key in ("sampler", "guidance", "threshold")}
    return _ready(build_drawing(config, model, opened.data, OtherRuns(config)), values)


def cascade_of(values: dict[str, Any]) -> Drawing:
    """Prepare to draw from the last of ``values["cascade"]``, those before it its sources; or UserError."""
    runs = open_stages("cascade", values["cascade"], values["weights"], values["data_root"])
    changes = values["stages"]
    if len(changes) > len(runs):
        raise UserError(f"stages: {len(changes)} groups for {len(runs)} stages; pass one a stage at most")
    drawings = []
    for i, run in enumerate(runs):
        config = drawn_as(f"stages[{i}]", run.config, changes[i] if i < len(changes) else {})
        drawing = build_drawing(config, run.model, run.data, OtherRuns(config))
        prepare = _conditioning_noise(drawing, values["noise"]) if values["noise"] else None
        drawings.append(replace(drawing, prepare=prepare))
    if values["noise"] and all(one.prepare is None for one in drawings):
        problem = "no stage was trained with noise on what those before it draw"
        fix = "set noise=0, or use a stage trained with augmentation=conditioning_noise"
        raise UserError(f"noise={values['noise']}: {problem}; {fix}")
    *before, last = drawings
    return _ready(replace(last, sources={str(one.data.known_as): one for one in before}), values)


def _ready(drawing: Drawing, values: dict[str, Any]) -> Drawing:
    """Move ``drawing`` to its device; UserError for a label or prompt of ``values`` that it does not take."""
    label, classes = values["label"], drawing.data.num_classes
    if label is not None:
        if not drawing.conditional or not classes:
            raise UserError(f"label={label}: this model was trained without labels; pass null")
        if type(label) is not int or not 0 <= label < classes:
            raise UserError(f"label={label}: must be a class from 0 to {classes - 1}")
        if values["prompt"] is not None:
            raise UserError(f"label={label}: must be null beside a prompt")
    if values["like"] is not None:
        others = {name: source for name, source in drawing.sources.items() if name != IMAGE}
        drawing = replace(drawing, sources=others)
    condition_of(drawing, values, 1)  # before anything is drawn
    drawing.model.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(values["threads"] or torch.get_num_threads())
    return drawing


def condition_of(drawing: Drawing, values: dict[str, Any], n: int) -> Condition | None:
    """Return the condition of n samples: prompts, else the label or default, and ``like``; or UserError."""
    condition = _prompted(drawing, values, n)
    if values["like"] is None:
        return condition
    images = Condition(**{IMAGE: interpolate_images(drawing, values["like"], n)})
    return images if condition is None else condition.together(images)


def _prompted(drawing: Drawing, values: dict[str, Any], n: int) -> Condition | None:
    if (prompt := values.get("prompt")) is None:
        return drawing.condition(n, values["label"])
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("prompt=[]: must be a text, or a list of one text or more")
    conditions = drawing.data.encode_prompts(prompts)
    if not any("text" in parts_read(one.model, one.data) for one in (drawing, *drawing.stages.values())):
        fix = "pass one trained with model.conditional=[text]"
        raise UserError(f"prompt={prompts[0]!r}: this model is not conditioned on text; {fix}")
    given = {*conditions.parts, *drawing.sources, *([IMAGE] if values["like"] is not None else [])}
    absent = [name for name in parts_read(drawing.model, drawing.data) if name not in given]
    check_dropped(f"prompt={prompts[0]!r}", drawing.model.label_dropout, absent)
    return conditions[torch.arange(n) % len(prompts)]


def draw_all(drawing: Drawing, values: dict[str, Any]) -> dict[str, Tensor]:
    """Draw n of each source, by name, and of ``SAMPLES``: (n, *shape) each in data units, in batches.

    UserError: a sample is not finite.
    """
    n, most = values["n"], values["batch_size"]
    wanted, drawn = condition_of(drawing, values, n), []
    for start in range(0, n, most):
        size = min(most, n - start)
        some = None if wanted is None else wanted[slice(start, start + size)]
        generator = drawing.generator(seed_of(values, start))
        bar = partial(progress_bar, desc=f"samples {start + size}/{n}", disable=None)
        condition = drawing.fill(some, size, generator, bar)
        parts = {} if condition is None else condition.parts
        x = drawing.draw(size, condition, generator, bar)
        if values["cascade"] is not None:
            x = drawing.data.as_condition(x)  # on the data's levels, as what the stages before it drew
        if not x.isfinite().all():
            fix = "choose another sampler or more sampler.steps"
            raise UserError(f"ckpt={values['ckpt']}: a sample is not finite; {fix}")
        drawn.append({name: parts[name].value for name in drawing.sources} | {SAMPLES: x})
    return {name: torch.cat([one[name] for one in drawn]).cpu() for name in drawn[0]}


def seed_of(values: dict[str, Any], start: int) -> int:
    """Return the seed of the batch that begins with the sample ``start``."""
    return mix(values["seed"], Stream.SAMPLES, start)


def _conditioning_noise(
    drawing: Drawing, level: float
) -> Callable[[Condition, torch.Generator], Condition] | None:
    """Return a function that noises the part that training noised; None without such a part."""
    steps, read = drawing.data.augmentations, parts_read(drawing.model, drawing.data)
    noised = (step.part for step in steps if isinstance(step, ConditioningNoise))
    part = next((name for name in noised if name in read), None)
    if part is None:
        return None
    numbers = noise_numbers(steps, part, level)

    def prepare(condition: Condition, generator: torch.Generator) -> Condition:
        x = condition.parts[part].value
        eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        z = ConditioningNoise.at(x, torch.full((len(x),), level, device=x.device), eps)
        changed: dict[str, Any] = {part: z, AUGMENTATION: Part(numbers.to(x.device).expand(len(x), -1))}
        return condition.together(Condition(**changed))

    return prepare


def interpolate_images(drawing: Drawing, images: Sequence[int], n: int) -> Tensor:
    """Return embeddings (n, d) of one of the test ``images``, or from one of two to the other; or UserError.

    At even steps along their great circle (Ramesh et al. 2022, sec. 3.1 and 3.2).
    """
    data, key = drawing.data, f"like={[*images]}"
    if not isinstance(data, Captioned) or IMAGE not in drawing.model.conditions:
        raise UserError(f"{key}: this model is not conditioned on embeddings of images; pass a decoder's run")
    if len(images) not in (1, 2):
        raise UserError(f"{key}: must be one image, or two to interpolate between")
    test = data.splits["test"]
    for item in images:
        if not 0 <= item < len(test):
            raise UserError(f"{key}: {item} is no item of the test set; pass 0 to {len(test) - 1}")
    assert test.condition is not None
    ends = test.condition[torch.tensor([images[0], images[-1]])].parts[IMAGE].value
    share = torch.linspace(0, 1, n) if len(images) > 1 else torch.zeros(n)
    return slerp(ends[0].expand(n, -1), ends[1].expand(n, -1), share)
