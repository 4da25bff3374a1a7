"""Build the model of a resolved configuration and its data; compile it where ``compile=true``.

What is reported is computed by the network as it is written, whether it was compiled or not. Names of weights
stay as they are, so a checkpoint goes on in either state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from triptych.config.build import Dependencies, build, parameters_of
from triptych.config.trust import import_class
from triptych.data.augment import count_numbers
from triptych.diffusion.condition import AUGMENTATION, Kind, Vectors
from triptych.diffusion.decoder import Decoder, GaussianDensity
from triptych.errors import UserError

if TYPE_CHECKING:  # a plan builds networks without Lightning
    from triptych.data.base import DataModule
    from triptych.data.batch import Batch
    from triptych.models.base import BoundModel

ALLOCATED = 2**20  # bytes of a tensor, at most, in a network that is made to be measured
CALLS = 10_000  # tensors that a model is made of, at most
CHOICES = ("schedule", "process", "denoiser", "objective", "likelihood")  # that may be none


def build_model(
    config: dict[str, Any], data: DataModule, stages: Mapping[str, Any] | None = None
) -> BoundModel:
    """Build the LightningModule with initial weights; ``config`` is the whole resolved configuration.

    ``stages``: of a cascade, what ``reopen.open_model_stages`` gives.

    Raises:
        UserError: a value that its owner refuses, or a choice that this model would not read.
    """
    from triptych.models.diffusion import Diffusion

    table = parts_table(config, data)
    kind = import_class(config["model"].get("_target_"), "model")
    if getattr(kind, "of_latents", False):
        _of_latents(table, kind)
    model = build(config["model"], "model", table, **(stages or {}))
    if _augmentation_kind(data) and not isinstance(model, Diffusion):
        raise UserError(f"augmentation: {type(model).__name__} has no network that reads it; pass told=false")
    _check_read(config, table, type(model))
    return model


def check_size(config: dict[str, Any], data: DataModule) -> None:
    """Refuse a network that this machine's memory cannot hold, before any of it is allocated.

    Raises:
        UserError: with the first tensor for which there is no room. Whatever else is wrong, ``build_model``
            says.
    """
    table = parts_table(config, data)
    try:
        with torch.random.fork_rng([]), Budget(machine_memory(), "this machine's memory", largest=ALLOCATED):
            if config["denoiser"]:
                table.at("denoiser")
            elif ladder := config["model"].get("network"):
                build(
                    ladder, "model.network", table.beside(import_class(config["model"]["_target_"], "model"))
                )
    except Exception as error:
        if isinstance(error.__cause__, MemoryError):
            raise


def parts_table(config: dict[str, Any], data: DataModule) -> Dependencies:
    """Return the objects injected by argument name: facts of the data and parts of ``config``.

    Data with a density have the Gaussian decoder, whichever of levels is named.

    Raises:
        UserError: a conditional model of data without labels; a decoder that is none of levels for data that
            have them.
    """
    table = Dependencies(config, facts(config, data))
    name = config["bound"].get("decoder")
    with suppress(ValueError):  # an unknown name, or a class of the user's own: left to the builder
        of_levels = isinstance(name, str) and Decoder.named(name, "bound.decoder").of_levels
        if of_levels and data.levels is None:
            table.built["bound.decoder"] = GaussianDensity()
        elif isinstance(name, str) and not of_levels and data.levels is not None:
            raise UserError(f"bound.decoder={name}: data {data.name} has levels; pass categorical")
    return table


def _of_latents(table: Dependencies, kind: type[BoundModel]) -> None:
    """Build the ladder of a latent model, and its diffusion parts in the shape of the latents."""
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
        raise UserError(
            f"model.conditional=true: data {data.name} has no labels and no other conditions; pass false"
        )
    return {
        "data_name": data.name,
        "shape": data.shape,
        "levels": data.levels,
        "discrete": data.levels is not None,
        "spacing": 2 / (data.levels - 1) if data.levels else None,
        "num_classes": data.num_classes,
        "conditions": _conditions(data, conditional) | _augmentation_kind(data),
        "mixture": data.mixture,
        "training": partial(training_items, data),
    }


def _conditions(data: DataModule, conditional: Any) -> dict[str, Kind]:
    """Return the parts of conditions that ``model.conditional`` selects."""
    if not isinstance(conditional, list):
        return data.conditions if conditional else {}
    for name in set(conditional) - set(data.conditions):
        raise UserError(
            f"model.conditional: {name!r} is no part of the conditions of data {data.name}; "
            f"choose from {', '.join(data.conditions)}"
        )
    return {name: kind for name, kind in data.conditions.items() if name in conditional}


def _augmentation_kind(data: DataModule) -> dict[str, Kind]:
    """Return the condition that describes augmentations to the network; {} without any."""
    numbers = count_numbers(data.augmentations)
    return {AUGMENTATION: Vectors(numbers)} if numbers else {}


def training_items(data: DataModule, n: int) -> Batch:
    """Return the first ``n`` training items."""
    train = data.splits["train"]
    return train.batch(torch.arange(min(n, len(train))))


def _check_read(config: dict[str, Any], table: Dependencies, kind: type[BoundModel]) -> None:
    """Refuse choices that this model does not read: no comparison may vary a key without effect."""
    used = {place.split(".")[0] for place in table.built}
    for group in CHOICES:
        if config.get(group) and group not in used and group not in kind.ignores:
            raise UserError(f"{group}: {kind.__name__} does not read it; pass {group}=none")
    if "bound" in table.built or "bound" in kind.ignores:
        return
    for key, parameter in parameters_of(config["bound"]["_target_"])[0].items():
        value, usual = config["bound"].get(key), parameter.default
        if key in config["bound"] and usual is not parameter.empty and value != usual:
            shown = "null" if usual is None else usual
            raise UserError(f"bound.{key}={value}: {kind.__name__} does not read it; pass {shown}")


def check_compiler(config: dict[str, Any], model: BoundModel, device: torch.device) -> None:
    """Compile a test function if ``compile=true``, to see whether this machine has a compiler.

    Raises:
        UserError: it cannot, or the model has no network.
    """
    if not config.get("compile"):
        return
    if not model.networks():
        raise UserError(f"compile=true: {type(model).__name__} has no network; pass false")
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except Exception as error:  # a compiler's own, under many names
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = (lines or [type(cause).__name__])[0][:200]
        raise UserError(
            f"compile=true: this machine cannot compile for {device.type} ({reason}); pass false, or "
            "install a C++ compiler, g++ or the one that CXX names"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sin()


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


def machine_memory() -> int:
    """Return this machine's memory in bytes; practically infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62


class Budget(TorchFunctionMode):
    """Limit the memory of tensors created within the context, before they are allocated.

    Args:
        most: bytes that they may take together.
        of: whose size that is, for the message.
        largest: bytes of a tensor that is allocated; larger ones have a shape and no memory.

    Raises:
        MemoryError: they would take more, or there are too many of them.
    """

    def __init__(self, most: int, of: str, largest: float = math.inf):
        super().__init__()
        self.most, self.left, self.of, self.calls = most, most, of, CALLS
        self.largest = largest
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
            if planned.numel() * planned.element_size() > self.largest:
                return planned
        return function(*args, **kwargs)

    def _refusal(self, tensor: str) -> str:
        return f"needs more than {self.of}, {self.most / 2**30:.3g} GiB ({tensor}); choose a smaller network"
