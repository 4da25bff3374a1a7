"""Samples of a model, of the conditions that it knows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.diffusion.condition import Condition
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.wrappers import is_conditional
from triptych.run.source import Source, filled


def draw_samples(
    module,
    sampler: Sampler,
    data: DataModule,
    n: int,
    seed: int,
    progress=iter,
    label: int | None = None,
    guided=None,
    condition: Condition | None = None,
    sources: Sequence[Source] = (),
) -> Tensor:
    """n samples (n, *shape) in data units, by ``guided`` (a denoiser around the module's own) if given.

    Of ``condition``, or else ``sample_conditions``; ``sources`` give parts in place of its own.
    """
    generator = torch.Generator(module.device).manual_seed(seed)
    wanted = (
        sample_conditions(module, data, n, label, guided)
        if condition is None
        else condition.to(module.device)
    )
    wanted = filled(wanted, sources, n, generator, progress)
    training = module.training
    module.eval()
    around = {} if guided is None else {"denoiser": guided.to(module.device)}
    x = module.sample(n, sampler, generator, wanted, progress, **around)
    module.train(training)
    return x.cpu()


def takes_condition(module, guided=None) -> bool:
    """Whether samples are conditional: the network is told conditions, or a guide is."""
    return module.conditional or (guided is not None and is_conditional(guided))


def is_class_conditional(module, data: DataModule) -> bool:
    """Whether a conditional model is told labels alone."""
    parts = module.conditional if isinstance(module.conditional, list) else data.conditions
    return set(parts) == {"label"}


def sample_conditions(
    module, data: DataModule, n: int, label: int | None = None, guided=None, items: Tensor | None = None
) -> Condition | None:
    """The condition of each of n samples, on the module's device; None where they are unconditional.

    Labels, where nothing else is told: all classes in turn. Anything else: that of held-out ``items``, None:
    in their order and over again. A ``label`` that is named is every sample's.
    """
    if not takes_condition(module, guided):
        return None
    named = None if label is None else Condition(label=torch.full((n,), label))
    if is_class_conditional(module, data):
        condition = named or Condition(label=torch.arange(n) % data.num_classes)
    else:
        split = data.splits[data.condition_split]
        assert split.condition is not None
        chosen = torch.arange(n) % len(split) if items is None else items
        condition = split.condition[chosen].together(named)
    return condition.to(module.device)
