"""Samples of a cascade whose stages are runs, each drawn as its run says: ``triptych-sample cascade=...``."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from triptych.data.augment import ConditioningNoise, noise_numbers
from triptych.diffusion.cascade import CascadeSampler, Stage
from triptych.diffusion.condition import AUGMENTATION, Condition, Part
from triptych.diffusion.draws import Stream, mix
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion
from triptych.run.build import build_drawing
from triptych.run.experiment import Experiment
from triptych.run.guided import Guides
from triptych.run.sampling.draw import sample_conditions
from triptych.run.sampling.prompts import of_prompts, texts
from triptych.run.stages import PROMPTED, condition_parts, drawn_as, open_stages


class OpenedCascade:
    """The stages' runs, opened once, and what is asked of them.

    Args:
        values: cascade, stages, noise, prompt, label, weights and data_root of ``configs/sample.yaml``.

    Raises:
        UserError: stages that do not fit one another, or cannot draw what is asked for in this way.
    """

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.runs = open_stages("cascade", values["cascade"], values["weights"], values["data_root"])
        changes = values["stages"]
        if len(changes) > len(self.runs):
            raise UserError(
                f"stages: {len(changes)} groups for {len(self.runs)} stages; pass one a stage at most"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stages = [
            self._stage(i, run, changes[i] if i < len(changes) else {}) for i, run in enumerate(self.runs)
        ]

    @property
    def last(self) -> Experiment:
        """The stage that draws what is asked for."""
        return self.runs[-1]

    def _stage(self, i: int, run: Experiment, change: dict[str, Any]) -> Stage:
        model = cast(Diffusion, run.model.to(self.device))
        config = drawn_as(f"stages[{i}]", run.config, change)
        drawing = build_drawing(config, model, run.data, Guides(config))
        denoiser = model.denoiser if drawing.denoiser is None else drawing.denoiser.to(self.device)
        return Stage(
            run.data.known_as or f"stage {i}",
            cast(Any, denoiser),
            model.schedule,
            model.prepared(drawing.sampler),
            model.shape,
            run.data.as_condition,
            self._noise(run) if self.values["noise"] else None,
        )

    def _noise(self, run: Experiment) -> Callable[[Condition, torch.Generator | None], Condition] | None:
        """Noise on what the stage is told of those before it; None for one that is told nothing of them."""
        drawn = [name for name in condition_parts(run) if name not in PROMPTED]
        if not drawn:
            return None
        level = self.values["noise"]
        numbers = noise_numbers(run.data.augmentations, drawn[0], level).to(self.device)
        return partial(noised, part=drawn[0], level=level, numbers=numbers)

    def condition(self, n: int) -> Condition | None:
        """What is asked for: prompts in turn, or what held-out items of the last stage have."""
        prompt, label, run = self.values["prompt"], self.values["label"], self.last
        parts = [name for one in self.runs for name in condition_parts(one)]
        if prompt is not None:
            combined: Condition | None = of_prompts(texts(prompt), run.data, parts, n)
        else:
            combined = sample_conditions(run.model, run.data, n)
            combined = None if combined is None else combined.only(*PROMPTED)
        if label is not None:
            classes = run.data.num_classes
            if "label" not in parts or type(label) is not int or not 0 <= label < classes:
                wanted = f"a class from 0 to {classes - 1}" if "label" in parts else "null"
                raise UserError(f"label={label}: must be {wanted}")
            named = Condition(label=torch.full((n,), label))
            combined = named if combined is None else combined.together(named)
        return None if combined is None else combined.to(self.device)

    def draw(self) -> dict[str, Tensor]:
        """stage -> ``values["n"]`` samples (n, *shape) in data units, the last stage's last."""
        n, most = self.values["n"], self.values["batch_size"]
        condition, parts = self.condition(n), []
        for start in range(0, n, most):
            some = None if condition is None else condition[slice(start, start + most)]
            generator = torch.Generator(self.device).manual_seed(
                mix(self.values["seed"], Stream.SAMPLES, start)
            )
            size = min(most, n - start)
            parts.append(
                CascadeSampler(self.stages)(size, generator=generator, condition=some, device=self.device)
            )
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def pictures(self, drawn: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Experiment]]:
        """(name of a picture, samples, whose they are) of each stage."""
        for i, (x, run) in enumerate(zip(drawn.values(), self.runs, strict=True)):
            yield ("samples" if run is self.last else f"stage_{i}"), x, run


def noised(
    condition: Condition, generator: torch.Generator | None, part: str, level: float, numbers: Tensor
) -> Condition:
    """``condition`` with noise of ``level`` on its image ``part``, told in the numbers ``numbers``."""
    x = condition.parts[part].value
    eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    z = ConditioningNoise.at(x, torch.full((len(x),), level, device=x.device), eps)
    changed: dict[str, Any] = {part: z, AUGMENTATION: Part(numbers.expand(len(x), -1))}
    return condition.together(Condition(**changed))
