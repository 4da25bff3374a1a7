"""Samples of a model, of the classes that it knows."""

import torch
from torch import Tensor

from triptych.data.base import DataModule
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.wrappers import is_conditional


def draw(
    module,
    sampler: Sampler,
    data: DataModule,
    n: int,
    seed: int,
    progress=iter,
    label: int | None = None,
    guided=None,
) -> Tensor:
    """n samples (n, *shape) in data units, by ``guided`` (a denoiser around the module's own) if given."""
    generator = torch.Generator(module.device).manual_seed(seed)
    condition = None
    if takes_labels(module, guided):
        condition = labels(n, data, label).to(module.device)
    training = module.training
    module.eval()
    around = {} if guided is None else {"denoiser": guided.to(module.device)}
    x = module.sample(n, sampler, generator, condition, progress, **around)
    module.train(training)
    return x.cpu()


def takes_labels(module, guided=None) -> bool:
    """Whether samples are of classes: the network is told them, or a guide is."""
    return module.conditional or (guided is not None and is_conditional(guided))


def labels(n: int, data: DataModule, label: int | None = None) -> Tensor:
    """The class of each sample, (n,) int64: all in turn unless one is named."""
    return torch.arange(n) % data.num_classes if label is None else torch.full((n,), label)
