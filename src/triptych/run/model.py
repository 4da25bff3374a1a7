"""Build the model of a resolved configuration and its data; compile it for the fit where ``compile=true``."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from triptych.config.build import Dependencies, build
from triptych.config.keys import of_class
from triptych.config.signatures import REQUIRED
from triptych.config.trust import import_class
from triptych.data.augment import count_numbers
from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.diffusion.condition import AUGMENTATION, Kind, Vectors
from triptych.diffusion.decoder import Decoder, GaussianDensity
from triptych.errors import UserError
from triptych.models.base import BoundModel
from triptych.models.diffusion import Diffusion
from triptych.run.parsing import error_line

CALLS = 10_000  # tensors that a model is made of, at most
MALLOC = {-3: 32 << 20, -1: 1 << 30}  # glibc's M_MMAP_THRESHOLD, at its most, and M_TRIM_THRESHOLD
CHOICES = ("schedule", "process", "denoiser", "objective", "likelihood")  # that may be none
QUIET = (  # warnings of libraries that do not concern users
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers.*",  # our loaders index tensors in memory; a worker would only cost
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's is not
    ".*your `IterableDataset` has `__len__` defined.*",
    ".*dataloader is not resumable.*",  # ours follows from the step
    ".*`srun` command is available.*",
    ".*It is recommended to use .*sync_dist=True.*",  # our figures are of all processes when they are logged
    ".*Found .* module.s. in eval mode.*",
)


def set_up_torch(threads: int) -> None:
    """Silence libraries; set the number of threads; make a CPU faster, with the same results."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_fabric"):  # and Lightning's tips
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(threads)  # sums in another order would differ in the last digit
    torch.set_flush_denormal(True)  # gradients near 1e-40 take many cycles
    if sys.platform == "linux" and (keep := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in MALLOC.items():
            keep(option, value)  # memory that a tensor leaves is the next one's: pages take a sixth of a step


def build_model(
    config: dict[str, Any],
    data: DataModule,
    stages: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> BoundModel:
    """Build the LightningModule of a whole resolved configuration with initial weights.

    ``stages``: of a cascade, from ``reopen.open_model_stages``; ``recorded``: the bound's keys that a run
    was trained with. UserError for a refused value, or a choice that this model would not read.
    """
    table = _parts(config, data)
    model = build(config["model"], "model", table, **(stages or {}))
    if _augmentation_kind(data) and not isinstance(model, Diffusion):
        raise UserError(f"augmentation: {type(model).__name__} has no network that reads it; pass told=false")
    _check_read(config, table, type(model), recorded or {})
    return model


def _parts(config: dict[str, Any], data: DataModule) -> Dependencies:
    table = parts_table(config, data)
    kind = import_class(config["model"].get("_target_"), "model")
    if getattr(kind, "of_latents", False):
        _of_latents(table, kind)
    return table


def parts_table(config: dict[str, Any], data: DataModule) -> Dependencies:
    """Return what is injected by argument name: facts of the data and parts of ``config``; or UserError."""
    table = Dependencies(config, facts(config, data))
    name = config["bound"].get("decoder")
    kind = Decoder.named.get(name) if isinstance(name, str) else None
    if kind is not None:  # an unknown name, or a class of the user's own: left to the builder
        if kind.of_levels and data.levels is None:
            table.built["bound.decoder"] = GaussianDensity()
        elif not kind.of_levels and data.levels is not None:
            raise UserError(f"bound.decoder={name}: data {data.name} has levels; pass categorical")
    return table


def _of_latents(table: Dependencies, kind: type[BoundModel]) -> None:
    place = "model.network"
    ladder = build(table.config["model"].get("network"), place, table.beside(kind))
    table.built |= {place: ladder, "bound.decoder": GaussianDensity()}
    latents = {"shape": tuple(ladder.top), "levels": None, "discrete": False, "spacing": None}
    inner = Dependencies(table.config, table.facts | latents | {"mixture": None}, table.built)
    for name in ("denoiser", "objective", "bound"):
        if table.config.get(name):  # else none was chosen, which the model refuses
            inner.at(name)


def facts(config: dict[str, Any], data: DataModule) -> dict[str, Any]:
    """Return facts of the data, by the argument names that request them."""
    conditional = config["model"].get("conditional")
    if conditional and not data.conditions:
        problem = f"data {data.name} has no labels and no other conditions"
        raise UserError(f"model.conditional=true: {problem}; pass false")
    known = data.conditions if conditional else {}
    if isinstance(conditional, list):
        for name in set(conditional) - set(known):
            problem = f"{name!r} is no part of the conditions of data {data.name}"
            raise UserError(f"model.conditional: {problem}; choose from {', '.join(known)}")
        known = {name: kind for name, kind in known.items() if name in conditional}
    return {
        "data_name": data.name,
        "shape": data.shape,
        "levels": data.levels,
        "discrete": data.levels is not None,
        "spacing": 2 / (data.levels - 1) if data.levels else None,
        "num_classes": data.num_classes,
        "conditions": known | _augmentation_kind(data),
        "mixture": data.mixture,
        "training": partial(training_items, data),
    }


def _augmentation_kind(data: DataModule) -> dict[str, Kind]:
    numbers = count_numbers(data.augmentations)
    return {AUGMENTATION: Vectors(numbers)} if numbers else {}


def training_items(data: DataModule, n: int) -> Batch:
    """Return the first ``n`` training items."""
    train = data.splits["train"]
    return train.batch(torch.arange(min(n, len(train))))


def _check_read(
    config: dict[str, Any], table: Dependencies, kind: type[BoundModel], recorded: Mapping[str, Any]
) -> None:
    used = {place.split(".")[0] for place in table.built}
    for group in CHOICES:
        if config.get(group) and group not in used and group not in kind.ignores:
            raise UserError(f"{group}: {kind.__name__} does not read it; pass {group}=none")
    for key, argument in of_class(config["bound"]["_target_"])[0].items():
        value, usual = config["bound"].get(key), argument.default
        read = bool({"bound", f"bound.{key}"} & {*table.built})
        if key in recorded and recorded[key] == value:
            continue
        if key == "decoder":  # of latents it is a Gaussian
            usual, read = "categorical", read and not getattr(kind, "of_latents", False)
        if not read and key in config["bound"] and usual is not REQUIRED and value != usual:
            shown = "null" if usual is None else usual
            raise UserError(f"bound.{key}={value}: {kind.__name__} does not read it; pass {shown}")


def check_compiler(config: dict[str, Any], model: BoundModel, device: torch.device) -> None:
    """Compile a test function if ``compile=true``; UserError without a compiler, or a network."""
    if not config.get("compile"):
        return
    if not model.networks():
        raise UserError(f"compile=true: {type(model).__name__} has no network; pass false")
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.zeros(2, device=device))
    except Exception as error:  # a compiler's own, under many names
        problem = f"this machine cannot compile for {device.type} ({error_line(error)})"
        fix = "pass false, or install a C++ compiler, g++ or the one that CXX names"
        raise UserError(f"compile=true: {problem}; {fix}") from error


@contextmanager
def compiled(model: BoundModel, config: dict[str, Any]) -> Iterator[None]:
    """Compile the model's networks within the context if ``compile=true``."""
    networks = model.networks() if config.get("compile") else []
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


class Budget(TorchFunctionMode):
    """Limit the bytes of tensors that are created within the context to ``most``, before they are."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.left, self.calls = most, most, CALLS
        self.constructors = _device_constructors()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in self.constructors:
            about = {key: value for key, value in kwargs.items() if key not in ("generator", "pin_memory")}
            with torch._C.DisableTorchFunction():
                try:
                    if function is torch.linspace:  # whose own plan imports a compiler, for seconds
                        planned = torch.empty(kwargs.get("steps", *args[2:3]), device="meta")
                    else:
                        planned = function(*args, **(about | {"device": "meta"}))
                except RuntimeError:  # a size that no integer counts
                    raise MemoryError(self._refusal("a tensor of 2^63 bytes or more")) from None
            self.left -= planned.numel() * planned.element_size()
            self.calls -= 1
            if self.left < 0:
                raise MemoryError(self._refusal(f"a tensor of {'x'.join(map(str, planned.shape))}"))
            if self.calls < 0:
                raise MemoryError(f"more than {CALLS} tensors; choose a smaller network")
        return function(*args, **kwargs)

    def _refusal(self, tensor: str) -> str:
        return f"needs more than its file, {self.most / 2**30:.3g} GiB ({tensor}); choose a smaller network"
