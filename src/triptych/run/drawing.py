"""Draw samples of a model: sampler, denoiser, conditions, and earlier stages, as in DALL-E 2 and Imagen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.base import DataModule
from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import Progress, Sampler
from triptych.models.base import BoundModel

# parts that a person chooses; the other parts of a stage's condition are drawn
PROMPTED = ("label", "text", "text_embedding")
DRAWING = ("sampler", "guidance", "threshold")  # groups of how a stage draws


@dataclass(frozen=True)
class Drawing:
    """A model with its sampler, its denoiser and the sources of its conditions.

    ``sources``: of parts of the conditions, in place of held-out items' own: an earlier stage, which draws it
    under the same conditions, or the part that stands for it, as a text's embedding for an image's.
    """

    model: Any
    data: DataModule
    sampler: Sampler
    denoiser: nn.Module | None = None  # around the model's own, as guidance is
    sources: Mapping[str, "str | Drawing"] = field(default_factory=dict)
    prepare: Callable[[Condition, torch.Generator], Condition] | None = None  # as noise on an image

    @property
    def conditional(self) -> bool:
        """Whether samples are conditional: the network or a guide reads conditions."""
        around: Any = self.denoiser
        return bool(self.model.conditional or (around is not None and around.conditional))

    @property
    def class_conditional(self) -> bool:
        """Whether a conditional model reads labels alone."""
        own = self.model.conditional
        return {*(own if isinstance(own, list) else self.data.conditions)} == {"label"}

    def condition(
        self, n: int, label: int | Tensor | None = None, items: Tensor | None = None
    ) -> Condition | None:
        """Return the condition of n samples; None where they are unconditional.

        ``label``: one for all, or (n,); by default all classes in turn where the model reads labels alone.
        Other parts: those of held-out ``items`` (n,), by default the first n.
        """
        if not self.conditional:
            return None
        named = None if label is None else Condition(label=torch.as_tensor(label).expand(n))
        if self.class_conditional:
            return named or Condition(label=torch.arange(n) % self.data.num_classes)
        rows = torch.arange(n) if items is None else items
        split = self.data.splits[self.data.condition_split]
        assert split.condition is not None
        return split.condition[rows % len(split)].together(named)

    def held_out(self, n: int) -> Tensor:
        """Return the items (n,) whose conditions measured samples have, where those are not labels alone."""
        return choose(n, len(self.data.splits[self.data.condition_split]))

    @property
    def stages(self) -> dict[str, "Drawing"]:
        return {name: source for name, source in self.sources.items() if isinstance(source, Drawing)}

    def calibrated(self) -> "Drawing":
        """Return a copy whose sampler has measured the model once, to be reused for many chunks."""
        for stage in self.stages.values():
            stage.model.to(self.model.device)
        stages = {name: stage.calibrated() for name, stage in self.stages.items()}
        return replace(self, sampler=self.model.prepared(self.sampler), sources={**self.sources, **stages})

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.model.device).manual_seed(seed)

    def fill(
        self, condition: Condition | None, n: int, generator: torch.Generator, progress: Progress = iter
    ) -> Condition | None:
        """Complete the condition of n samples with the parts of ``sources``, on the model's device."""
        condition = None if condition is None else condition.to(self.model.device)
        for name, source in self.sources.items():
            if isinstance(source, Drawing):
                source.model.to(generator.device)
                own = None if condition is None else condition.without(name)
                value = source.data.as_condition(source.draw(n, own, generator, progress))
            else:
                assert condition is not None
                value = condition.parts[source].value
            part = Condition(**{name: value})
            condition = part if condition is None else condition.together(part)
        return condition

    @torch.no_grad()
    def draw(
        self, n: int, condition: Condition | None, generator: torch.Generator, progress: Progress = iter
    ) -> Tensor:
        """Draw n samples (n, *shape) in data units under a complete condition."""
        if self.prepare is not None and condition is not None:
            condition = self.prepare(condition, generator)
        training = self.model.training
        self.model.eval()
        around = {} if self.denoiser is None else {"denoiser": self.denoiser.to(self.model.device)}
        x: Tensor = self.model.sample(n, self.sampler, generator, condition, progress, **around)
        self.model.train(training)
        return x

    def samples(self, n: int, seed: int, items: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Draw n samples (n, *shape) in data units, on the CPU, under ``condition`` of the same arguments."""
        generator = self.generator(seed)
        condition = self.fill(self.condition(n, label, items), n, generator)
        return self.draw(n, condition, generator).cpu()


@dataclass(frozen=True)
class Experiment:
    """The objects of one run."""

    config: dict[str, Any]  # resolved, plain
    data: DataModule
    model: BoundModel
    drawing: Drawing | None = None  # of its samples; None for a model that was opened again, or draws none
    measured: tuple[tuple[Any, Drawing], ...] = ()  # (value of ``measures.over`` or None, drawing)
    reference: Any = None  # a SampleReference, of what is measured
    step: int = 0  # of the checkpoint that it was opened from


def set_key(config: dict[str, Any], key: str, value: Any) -> bool:
    """Give a dotted key of a configuration another value; False where there is no such key."""
    node: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or name not in node:
        return False
    node[name] = value
    return True


def choose(n: int, size: int) -> Tensor:
    """Return n of ``size`` items: in turn or, of more than n, random but fixed ones: they may be sorted."""
    fixed = torch.Generator().manual_seed(0)
    return torch.arange(n) % max(1, size) if n >= size else torch.randperm(size, generator=fixed)[:n]


def parts_read(model: Any, data: DataModule) -> Sequence[str]:
    """Return the parts of the data's conditions that the network reads."""
    conditional = model.conditional
    return conditional if isinstance(conditional, list) else [*data.conditions] * bool(conditional)
