"""Draw samples from trained runs, for ``triptych-sample`` and for use in Python."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.config.check import check_guide
from triptych.data.augment import ConditioningNoise, noise_only_description
from triptych.data.captions import IMAGE, Captioned, slerp
from triptych.diffusion.condition import AUGMENTATION, Condition, Part
from triptych.diffusion.draws import Stream, hash_seed
from triptych.errors import UserError
from triptych.models.condition_bits import check_parts_were_dropped
from triptych.records import Config
from triptych.run.build import build_drawing
from triptych.run.drawing import Drawing, condition_parts_read, select_rows
from triptych.run.experiment import Experiment
from triptych.run.other_runs import OtherRuns
from triptych.run.reopen import open_stages, with_changed_sampling
from triptych.terminal import progress_bar

SAMPLES = "samples"


def build_run_drawing(opened: Experiment, values: Config) -> Drawing:
    """Build the ``Drawing`` that samples one opened run; UserError if it cannot be sampled.

    ``values`` are the keys of ``configs/sample.yaml``.
    """
    model = opened.model
    check_guide(values)
    if not model.can_sample:
        raise UserError(
            f"ckpt={values['ckpt']}: a classifier cannot draw samples; pass a generative model"
        )
    config = opened.config | {key: values[key] for key in ("sampler", "guidance", "threshold")}
    return _check_and_move(build_drawing(config, model, opened.data, OtherRuns(config)), values)


def build_cascade_drawing(values: Config) -> Drawing:
    """Build the ``Drawing`` that samples a cascade: its last run, conditioned on the others.

    Raises UserError if the runs do not form a cascade.
    """
    runs = open_stages("cascade", values["cascade"], values["weights"], values["data_root"])
    changes = [*values["stages"]]
    changes += [{}] * (len(runs) - len(changes))
    drawings = []
    for i, (run, change) in enumerate(zip(runs, changes, strict=True)):
        config = with_changed_sampling(f"stages[{i}]", run.config, change)
        drawings.append(build_drawing(config, run.model, run.data, OtherRuns(config)))
    if values["noise"]:
        drawings = _with_noise(drawings, values["noise"])
    *sources, last = drawings
    return _check_and_move(
        replace(last, sources={str(stage.data.known_as): stage for stage in sources}), values
    )


def _with_noise(drawings: Sequence[Drawing], level: float) -> list[Drawing]:
    """Return copies of ``drawings`` that add noise of this level to their conditioning image.

    Only stages that were trained with conditioning noise do so; UserError if there are none.
    """
    noised = [replace(drawing, prepare=_conditioning_noise(drawing, level)) for drawing in drawings]
    if all(drawing.prepare is None for drawing in noised):
        raise UserError(
            f"noise={level}: no stage was trained with conditioning noise; set noise=0, or use a "
            "stage trained with augmentation=conditioning_noise"
        )
    return noised


def _check_and_move(drawing: Drawing, values: Config) -> Drawing:
    """Check the command's ``values`` against the model, and move the model to its device.

    Raises UserError for a label or prompt that the model does not take.
    """
    if values["label"] is not None:
        _check_label(drawing, values)
    if values["like"] is not None:
        others = {name: source for name, source in drawing.sources.items() if name != IMAGE}
        drawing = replace(drawing, sources=others)
    build_condition(drawing, values, 1)  # Raises errors before anything is drawn.
    drawing.model.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(values["threads"] or torch.get_num_threads())
    return drawing


def _check_label(drawing: Drawing, values: Config) -> None:
    """Raise UserError if the key ``label`` is not a class of the model."""
    label, classes = values["label"], drawing.data.num_classes
    if not drawing.conditional or not classes:
        raise UserError(f"label={label}: this model was trained without labels; pass null")
    if label not in range(classes):
        raise UserError(f"label={label}: must be a class from 0 to {classes - 1}")
    if values["prompt"] is not None:
        raise UserError(f"label={label}: must be null if a prompt is set")


def build_condition(drawing: Drawing, values: Config, n: int) -> Condition | None:
    """Build the condition of n samples from the keys ``prompt``, ``label`` and ``like``."""
    prompt = values.get("prompt")
    if prompt is None:
        condition = drawing.condition(n, values["label"])
    else:
        prompts = [prompt] if isinstance(prompt, str) else [*prompt]
        condition = _encode_prompts(drawing, prompts, values["like"] is not None)
        condition = condition[torch.arange(n) % len(prompts)]
    if values["like"] is None:
        return condition
    images = Condition(**{IMAGE: interpolate_images(drawing, values["like"], n)})
    return images if condition is None else condition.merge(images)


def _encode_prompts(drawing: Drawing, prompts: list[str], with_image: bool) -> Condition:
    """Return the condition parts that prompts give; UserError if the model needs other parts.

    ``with_image``: an image embedding will be added to them.
    """
    conditions = drawing.data.encode_prompts(prompts)
    if not any(
        "text" in condition_parts_read(stage.model, stage.data)
        for stage in (drawing, *drawing.stages.values())
    ):
        raise UserError(
            f"prompt={prompts[0]!r}: this model is not conditioned on text; pass a run trained "
            "with model.conditional=[text]"
        )
    known = {*conditions.parts, *drawing.sources}
    if with_image:
        known.add(IMAGE)
    absent = [
        name for name in condition_parts_read(drawing.model, drawing.data) if name not in known
    ]
    check_parts_were_dropped(f"prompt={prompts[0]!r}", drawing.model.label_dropout, absent)
    return conditions


def draw_all_sources(drawing: Drawing, values: Config) -> dict[str, Tensor]:
    """Draw n samples, and what the ``sources`` of the drawing contribute to their condition.

    Return {name: (n, ...)}: each part of the condition that a source supplies, and the samples (n,
    *shape) in data units under the name ``SAMPLES``. Raises UserError if a sample is not finite.
    """
    n = values["n"]
    condition = build_condition(drawing, values, n)
    batches = []
    for rows in torch.arange(n).split(values["batch_size"]):
        batches.append(_draw_batch(drawing, values, select_rows(condition, rows), rows))
    return {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}


def _draw_batch(
    drawing: Drawing, values: Config, condition: Condition | None, rows: Tensor
) -> dict[str, Tensor]:
    """Draw those of the n samples that have the indices ``rows``, as in ``draw_all_sources``."""
    size, end = len(rows), int(rows[-1]) + 1
    generator = drawing.generator(batch_seed(values, int(rows[0])))
    bar = partial(progress_bar, desc=f"samples {end}/{values['n']}", disable=None)
    condition = drawing.complete_condition(condition, size, generator, bar)
    x = drawing.draw(size, condition, generator, bar)
    if values["cascade"] is not None:
        # Round to the data's levels, as is done for samples of the earlier stages.
        x = drawing.data.as_condition(x)
    if not x.isfinite().all():
        raise UserError(
            f"ckpt={values['ckpt']}: a sample is not finite; choose another sampler or more "
            "sampler.steps"
        )
    parts = {} if condition is None else condition.parts
    return {name: parts[name].value for name in drawing.sources} | {SAMPLES: x}


def batch_seed(values: Config, start: int) -> int:
    """Return the random seed of the batch that begins with sample number ``start``."""
    return hash_seed(values["seed"], Stream.SAMPLES, start)


def _conditioning_noise(
    drawing: Drawing, level: float
) -> Callable[[Condition, torch.Generator], Condition] | None:
    """Return a function that adds noise to a condition's image; None without such training.

    It adds noise to the part that was augmented by conditioning noise in training.
    """
    steps, read = drawing.data.augmentations, condition_parts_read(drawing.model, drawing.data)
    noised = [
        step.part for step in steps if isinstance(step, ConditioningNoise) and step.part in read
    ]
    if not noised:
        return None
    part = str(noised[0])
    numbers = noise_only_description(steps, part, level)

    def prepare(condition: Condition, generator: torch.Generator) -> Condition:
        x = condition.parts[part].value
        eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        z = ConditioningNoise.add_noise(x, torch.full((len(x),), level, device=x.device), eps)
        changed: dict[str, Any] = {
            part: z,
            AUGMENTATION: Part(numbers.to(x.device).expand(len(x), -1)),
        }
        return condition.merge(Condition(**changed))

    return prepare


def interpolate_images(drawing: Drawing, images: Sequence[int], n: int) -> Tensor:
    """Return n image embeddings (n, d): that of one test image, or interpolations between two.

    ``images`` are one or two indices of test items. Interpolation is along the great circle through
    both embeddings, in even steps (Ramesh et al. 2022, sec. 3.1 and 3.2).
    """
    data = drawing.data
    if not isinstance(data, Captioned) or IMAGE not in drawing.model.conditions:
        raise UserError(
            f"like={[*images]}: this model is not conditioned on image embeddings; pass the run "
            "of a decoder"
        )
    condition = data.splits["test"].condition
    assert condition is not None
    first, last = condition[torch.tensor([images[0], images[-1]])].parts[IMAGE].value
    share = torch.linspace(0, 1, n) if len(images) > 1 else torch.zeros(n)
    return slerp(first.expand(n, -1), last.expand(n, -1), share)
