"""Draw samples from a model with a sampler and conditions, or from all stages of a cascade."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.base import DataModule
from triptych.diffusion.condition import Condition, Part
from triptych.diffusion.sampler import Progress, Sampler
from triptych.records import Config

# Condition parts that the user chooses. A cascade's earlier stages draw all other parts.
PROMPTED = ("label", "text", "text_embedding")
DRAWING = ("sampler", "guidance", "threshold")  # config groups that determine how samples are drawn


@dataclass(frozen=True)
class Drawing:
    """A model with all that is needed to draw samples: sampler, denoiser and condition sources.

    By default the conditions are those of held-out items. ``sources`` replaces some of their parts:
    {part: source}. A source is either an earlier stage, which draws the part under the remaining
    conditions, or the name of another part whose value is used instead (a text embedding in place
    of an image embedding).
    """

    model: Any
    data: DataModule
    sampler: Sampler
    denoiser: nn.Module | None = None  # the model's denoiser wrapped in guidance or a threshold
    sources: Mapping[str, "str | Drawing"] = field(default_factory=dict)
    # Changes the condition before sampling, for example by adding noise to a conditioning image.
    prepare: Callable[[Condition, torch.Generator], Condition] | None = None

    @property
    def conditional(self) -> bool:
        """Whether samples are conditional: the network or the guidance reads conditions."""
        guide: Any = self.denoiser or self.model
        return bool(self.model.conditional or guide.conditional)

    @property
    def class_conditional(self) -> bool:
        """Whether class labels are the only condition."""
        if isinstance(self.model.conditional, list):
            return {*self.model.conditional} == {"label"}
        return {*self.data.conditions} == {"label"}

    def condition(
        self, n: int, label: int | Tensor | None = None, items: Tensor | None = None
    ) -> Condition | None:
        """Return the condition of n samples, before ``complete_condition``; None if unconditional.

        ``label`` is one label for all samples or a tensor (n,). By default a model with labels as
        its only condition gets all classes in turn. The other parts of the condition come from the
        held-out items with indices ``items`` (n,), by default the first n.
        """
        if not self.conditional:
            return None
        if self.class_conditional and label is None:
            return Condition(label=torch.arange(n) % self.data.num_classes)
        labels = None
        if label is not None:
            labels = Condition(label=torch.as_tensor(label).expand(n))
        if self.class_conditional:
            return labels
        if items is None:
            items = torch.arange(n)
        split = self.data.splits[self.data.condition_split]
        assert split.condition is not None
        return split.condition[items % len(split)].merge(labels)

    def held_out_indices(self, n: int) -> Tensor:
        """Return the indices (n,) of held-out items whose conditions the sample metrics use."""
        return spread_indices(n, len(self.data.splits[self.data.condition_split]))

    @property
    def stages(self) -> dict[str, "Drawing"]:
        """{condition part: the earlier stage that draws it}."""
        return {
            name: source for name, source in self.sources.items() if isinstance(source, Drawing)
        }

    def calibrated(self) -> "Drawing":
        """Return a copy whose sampler is adapted to the model once, to draw many batches."""
        for stage in self.stages.values():
            stage.model.to(self.model.device)
        stages = {name: stage.calibrated() for name, stage in self.stages.items()}
        return replace(
            self, sampler=self.model.adapt_sampler(self.sampler), sources={**self.sources, **stages}
        )

    def generator(self, seed: int) -> torch.Generator:
        """Return a random generator with this seed, on the model's device."""
        return torch.Generator(self.model.device).manual_seed(seed)

    def complete_condition(
        self,
        condition: Condition | None,
        n: int,
        generator: torch.Generator,
        progress: Progress = iter,
    ) -> Condition | None:
        """Add the parts that come from ``sources`` to the condition of n samples.

        The result is on the model's device.
        """
        parts: dict[str, Any] = {}
        if condition is not None:
            parts |= condition.to(self.model.device).parts
        for name, source in self.sources.items():
            if isinstance(source, str):
                parts[name] = parts[source].value
                continue
            others = {other: part for other, part in parts.items() if other != name}
            source.model.to(generator.device)
            x = source.draw(n, Condition.of(**others), generator, progress)
            parts[name] = Part(source.data.as_condition(x))
        return Condition.of(**parts)

    @torch.no_grad()
    def draw(
        self,
        n: int,
        condition: Condition | None,
        generator: torch.Generator,
        progress: Progress = iter,
    ) -> Tensor:
        """Draw n samples (n, *shape) in data units, given a condition of ``complete_condition``."""
        if self.prepare is not None and condition is not None:
            condition = self.prepare(condition, generator)
        training = self.model.training
        self.model.eval()
        options = {}
        if self.denoiser is not None:
            options["denoiser"] = self.denoiser.to(self.model.device)
        x: Tensor = self.model.sample(n, self.sampler, generator, condition, progress, **options)
        self.model.train(training)
        return x

    def samples(
        self, n: int, seed: int, items: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """Draw n samples (n, *shape) in data units, on the CPU, under conditions of held-out items.

        The conditions are those of ``self.condition(n, label, items)``.
        """
        generator = self.generator(seed)
        condition = self.complete_condition(self.condition(n, label, items), n, generator)
        return self.draw(n, condition, generator).cpu()


def set_key(config: Config, key: str, value: Any) -> bool:
    """Set a dotted key of a configuration; return False if there is no such key."""
    parent, _, name = key.rpartition(".")
    try:
        node = reduce(getitem, parent.split("."), config)
        node[name]  # Raises if the key does not exist.
    except (KeyError, TypeError):
        return False
    node[name] = value
    return True


def select_rows(condition: Condition | None, rows: Tensor | slice) -> Condition | None:
    """Return a condition of the samples with these indices; None if there is no condition."""
    return None if condition is None else condition[rows]


def spread_indices(n: int, n_items: int) -> Tensor:
    """Return n indices of ``n_items`` items: a fixed random subset, or all in turn.

    All are used, repeatedly where necessary, if n >= n_items.
    """
    if n >= n_items:
        return torch.arange(n) % max(1, n_items)
    fixed = torch.Generator().manual_seed(0)
    return torch.randperm(n_items, generator=fixed)[:n]


def condition_parts_read(model: Any, data: DataModule) -> Sequence[str]:
    """Return the parts of the data's conditions that the network reads."""
    if isinstance(model.conditional, list):
        return model.conditional
    if model.conditional:
        return [*data.conditions]
    return []
