"""Build the model of a resolved configuration and its data; compile it if ``compile=true``."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch

from triptych.callbacks.tf32 import allow_tf32
from triptych.config.build import Dependencies, build, check_targets
from triptych.config.trust import import_class
from triptych.data.augment import count_condition_numbers
from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.diffusion.condition import AUGMENTATION, Kind, Vectors
from triptych.diffusion.decoder import Decoder, GaussianDensity
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.diffusion import Diffusion
from triptych.records import Config

# {option of glibc's mallopt: value}: M_MMAP_THRESHOLD at its maximum, and M_TRIM_THRESHOLD.
MALLOC_OPTIONS = {-3: 32 << 20, -1: 1 << 30}
CHOICES = ("schedule", "process", "denoiser", "objective", "likelihood")  # a model may ignore them
IGNORED_WARNINGS = (  # library warnings that do not concern users
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers.*",  # our loaders index tensors in memory
    ".*Checkpoint directory .* exists and is not empty.*",  # expected when a run is resumed
    ".*your `IterableDataset` has `__len__` defined.*",
    ".*dataloader is not resumable.*",  # the order of our loader is a function of the step
    ".*`srun` command is available.*",
    ".*It is recommended to use .*sync_dist=True.*",  # our metrics are already reduced over ranks
    ".*Found .* module.s. in eval mode.*",
)


def set_up_torch(threads: int) -> None:
    """Set torch's threads, precision and CPU options, and silence warnings of libraries."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):  # Lightning logs tips as warnings.
        logging.getLogger(name).setLevel(logging.ERROR)
    # The number is fixed, as it determines the order of summation and so the last digits.
    torch.set_num_threads(threads)
    # By default cuDNN uses TF32, whose ten-bit mantissa is less precise than the float32 we report.
    torch.set_float32_matmul_precision("highest")
    allow_tf32(False)
    # A Python session or user-supplied code may have set these two.
    torch.set_default_dtype(torch.float32)
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, False)
    torch.set_flush_denormal(True)  # Arithmetic on denormal numbers (below 1e-38) is very slow.
    if sys.platform == "linux":
        _keep_freed_memory()


def set_up_process(config: Config) -> None:
    """Import and check the classes of a configuration, then set torch's options and the seeds.

    The options are set last, as importing a user's module may change them.
    """
    check_targets(config)
    set_up_torch(config["threads"])
    pl.seed_everything(config["seed"], workers=True, verbose=False)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor instead of returning it to the system.

    Getting new pages from the system took a sixth of a training step.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # The C library is not glibc.
        return
    for option, value in MALLOC_OPTIONS.items():
        set_option(option, value)


def build_model(config: Config, data: DataModule, stages: Mapping[str, Any] = {}) -> BoundModel:
    """Build the LightningModule of a whole resolved configuration with initial weights.

    ``stages`` are a cascade's stages, from ``reopen.open_model_stages``. Raises UserError for a
    value that is not allowed, or for a group choice that this model does not use.
    """
    table = injection_table(config, data)
    kind = import_class(config["model"].get("_target_"), "model")
    if getattr(kind, "of_latents", False):
        _add_latent_parts(table, kind)
    model = build(config["model"], "model", table, **stages)
    if _augmentation_kind(data) and not isinstance(model, Diffusion):
        raise UserError(
            f"augmentation: {type(model).__name__} cannot read augmentation labels; set told=false "
            "for each augmentation"
        )
    check_choices(config, table, type(model))
    return model


def check_choices(config: Config, table: Dependencies, kind: type[BoundModel]) -> None:
    """Raise UserError if a config group was chosen that the model does not use."""
    used = {place.partition(".")[0] for place in table.built}
    for group in CHOICES:
        if config.get(group) and group not in used and group not in kind.ignores:
            raise UserError(f"{group}: {kind.__name__} does not use it; pass {group}=none")


def injection_table(config: Config, data: DataModule) -> Dependencies:
    """Return the objects to inject: facts about the data, and parts of the configuration.

    The parts are built when they are first requested.
    """
    table = Dependencies(config, data_facts(config, data))
    name = config["bound"].get("decoder")
    kind = Decoder.named.get(name) if isinstance(name, str) else None
    if kind is None:  # A user-supplied class or an unknown name, which the builder will refuse.
        return table
    discrete = data.levels is not None
    if kind.of_levels == discrete:
        return table
    if discrete:
        raise UserError(
            f"bound.decoder={name}: data {data.name} has discrete levels; use categorical"
        )
    table.built["bound.decoder"] = GaussianDensity()
    return table


def _add_latent_parts(table: Dependencies, kind: type[BoundModel]) -> None:
    """Build the parts of a latent diffusion model that act on latents, with the latents' shape."""
    place = "model.network"
    ladder = build(table.config["model"].get("network"), place, table.for_parts_of(kind))
    table.built |= {place: ladder, "bound.decoder": GaussianDensity()}
    latents = {"shape": tuple(ladder.top), "levels": None, "discrete": False, "spacing": None}
    inner = Dependencies(table.config, table.facts | latents | {"mixture": None}, table.built)
    for name in ("denoiser", "objective", "bound"):
        if table.config.get(name):  # If it is missing, the model itself raises the error.
            inner.build_at(name)


def data_facts(config: Config, data: DataModule) -> dict[str, Any]:
    """Return facts about the data, {name of the argument that receives it: value}."""
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


def _conditions_read(config: Config, data: DataModule) -> dict[str, Kind]:
    """Return {name: kind} of the condition parts that the network reads (``model.conditional``)."""
    conditional = config["model"].get("conditional")
    if not conditional:
        return {}
    if not data.conditions:
        raise UserError(f"model.conditional=true: data {data.name} has no conditions; pass false")
    if not isinstance(conditional, list):
        return data.conditions
    unknown = sorted({*conditional} - data.conditions.keys())
    if unknown:
        raise UserError(
            f"model.conditional: the data have no condition {unknown[0]!r}; choose from "
            f"{', '.join(data.conditions)}"
        )
    return {name: kind for name, kind in data.conditions.items() if name in conditional}


def _augmentation_kind(data: DataModule) -> dict[str, Kind]:
    """Return {part: kind} of the condition part that describes augmentations; {} without them."""
    numbers = count_condition_numbers(data.augmentations)
    return {AUGMENTATION: Vectors(numbers)} if numbers else {}


def training_items(data: DataModule, n: int) -> Batch:
    """Return the first ``n`` training items."""
    train = data.splits["train"]
    return train.batch(torch.arange(min(n, len(train))))


@contextmanager
def compile_networks(model: BoundModel, config: Config) -> Iterator[None]:
    """Within the ``with`` block, replace the model's networks by compiled ones.

    If ``compile`` is false in ``config``, change nothing.
    """
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
