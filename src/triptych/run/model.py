"""Build the model of a resolved configuration and its data; compile it for the fit.

It is compiled if ``compile=true``.
"""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from triptych.config.build import Dependencies, build
from triptych.config.trust import import_class
from triptych.data.augment import count_numbers
from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.diffusion.condition import AUGMENTATION, Kind, Vectors
from triptych.diffusion.decoder import Decoder, GaussianDensity
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.diffusion import Diffusion

MALLOC = {-3: 32 << 20, -1: 1 << 30}  # glibc's largest M_MMAP_THRESHOLD, and M_TRIM_THRESHOLD
CHOICES = ("schedule", "process", "denoiser", "objective", "likelihood")  # groups that may be none
QUIET = (  # warnings of libraries that do not concern users
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers.*",  # our loaders index tensors in memory
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's is not
    ".*your `IterableDataset` has `__len__` defined.*",
    ".*dataloader is not resumable.*",  # ours follows from the step
    ".*`srun` command is available.*",
    ".*It is recommended to use .*sync_dist=True.*",  # our figures are of all processes
    ".*Found .* module.s. in eval mode.*",
)


def set_up_torch(threads: int) -> None:
    """Silence libraries, set the number of threads, and make a CPU faster with equal results."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):  # Their tips are no warnings.
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(threads)  # sums in another order would differ in the last digit
    torch.set_flush_denormal(True)  # gradients near 1e-40 take many cycles
    if sys.platform == "linux":
        _keep_memory()


def _keep_memory() -> None:
    """Reuse the memory of freed tensors, because new pages would take a sixth of a step."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # the C library is not glibc
        return
    for option, value in MALLOC.items():
        set_option(option, value)


def build_model(
    config: dict[str, Any], data: DataModule, stages: Mapping[str, Any] | None = None
) -> BoundModel:
    """Build the LightningModule of a resolved configuration, with initial weights.

    ``stages``: of a cascade, from ``reopen.open_model_stages``. UserError: a value is refused, or
    the
    model would not read a choice.
    """
    table = parts_table(config, data)
    kind = import_class(config["model"].get("_target_"), "model")
    if getattr(kind, "of_latents", False):
        _of_latents(table, kind)
    model = build(config["model"], "model", table, **(stages or {}))
    if _augmentation_kind(data) and not isinstance(model, Diffusion):
        raise UserError(f"augmentation: {type(model).__name__} has no network that reads it; pass told=false")
    check_choices(config, table, type(model))
    return model


def check_choices(config: dict[str, Any], table: Dependencies, kind: type[BoundModel]) -> None:
    """Raise UserError for a choice that the model has not read."""
    used = {place.partition(".")[0] for place in table.built}
    for group in CHOICES:
        if config.get(group) and group not in used and group not in kind.ignores:
            raise UserError(f"{group}: {kind.__name__} does not read it; pass {group}=none")


def parts_table(config: dict[str, Any], data: DataModule) -> Dependencies:
    """Return the values that are injected by argument name: facts of the data, parts of ``config``.

    UserError: a part is refused.
    """
    table = Dependencies(config, facts(config, data))
    name = config["bound"].get("decoder")
    kind = Decoder.named.get(name) if isinstance(name, str) else None
    if kind is None:  # The builder knows classes of the user's own, and refuses unknown names.
        return table
    if kind.of_levels and data.levels is None:
        table.built["bound.decoder"] = GaussianDensity()
    if not kind.of_levels and data.levels is not None:
        raise UserError(f"bound.decoder={name}: data {data.name} has levels; pass categorical")
    return table


def _of_latents(table: Dependencies, kind: type[BoundModel]) -> None:
    place = "model.network"
    ladder = build(table.config["model"].get("network"), place, table.beside(kind))
    table.built |= {place: ladder, "bound.decoder": GaussianDensity()}
    latents = {"shape": tuple(ladder.top), "levels": None, "discrete": False, "spacing": None}
    inner = Dependencies(table.config, table.facts | latents | {"mixture": None}, table.built)
    for name in ("denoiser", "objective", "bound"):
        if table.config.get(name):  # The model itself refuses a missing part.
            inner.at(name)


def facts(config: dict[str, Any], data: DataModule) -> dict[str, Any]:
    """Return facts of the data by the names of the arguments that request them."""
    conditions = _conditions_read(config, data)
    return {
        "data_name": data.name,
        "shape": data.shape,
        "levels": data.levels,
        "discrete": data.levels is not None,
        "spacing": 2 / (data.levels - 1) if data.levels else None,
        "num_classes": data.num_classes,
        "conditions": conditions | _augmentation_kind(data),
        "mixture": data.mixture,
        "training": partial(training_items, data),
    }


def _conditions_read(config: dict[str, Any], data: DataModule) -> dict[str, Kind]:
    """Return the parts of the data's conditions that the network reads by ``model.conditional``."""
    conditional = config["model"].get("conditional")
    if not conditional:
        return {}
    if not data.conditions:
        problem = f"data {data.name} has no labels and no other conditions"
        raise UserError(f"model.conditional=true: {problem}; pass false")
    if not isinstance(conditional, list):
        return data.conditions
    for name in conditional:
        if name not in data.conditions:
            known = ", ".join(data.conditions)
            raise UserError(f"model.conditional: {name!r} is no part of the conditions; choose from {known}")
    return {name: kind for name, kind in data.conditions.items() if name in conditional}


def _augmentation_kind(data: DataModule) -> dict[str, Kind]:
    numbers = count_numbers(data.augmentations)
    return {AUGMENTATION: Vectors(numbers)} if numbers else {}


def training_items(data: DataModule, n: int) -> Batch:
    """Return the first ``n`` training items."""
    train = data.splits["train"]
    return train.batch(torch.arange(min(n, len(train))))


@contextmanager
def compiled(model: BoundModel, config: dict[str, Any]) -> Iterator[None]:
    """Compile the model's networks within the block if ``compile=true``."""
    if not config.get("compile"):
        yield
        return
    for network in model.networks():
        network.compile()
    try:
        yield
    finally:
        for network in model.networks():
            network._compiled_call_impl = None
