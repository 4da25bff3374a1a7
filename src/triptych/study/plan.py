"""Estimate the cost of a run or a sweep before it starts, for ``plan=true``.

Networks are built on the ``meta`` device, or on the CPU if that fails. Torch counts the operations
of a forward pass of one item; a backward pass counts as two, and gradient checkpointing adds one.
Activations are the tensors that autograd saves. Hours are operations / (a card's peak rate times a
utilisation). Training counts in the command's precision, forward and backward; validation, bounds
and samples count in float32, forward alone.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from triptych.config.build import build
from triptych.data.digits import N_TEST
from triptych.diffusion.condition import Condition, Labels
from triptych.errors import UserError
from triptych.run.model import injection_table
from triptych.study.formatting import count_noun, duration, three_digits

Config = Mapping[str, Any]  # a run's resolved configuration
UTILISATION = 0.35  # assumed fraction of the peak rate
# {card: dense operations per second}, from the data sheets of A100 SXM 80GB and H100 SXM.
PEAKS = {
    "A100": {"float32": 19.5e12, "TF32": 156e12, "16 bits": 312e12},
    "H100": {"float32": 67e12, "TF32": 494.5e12, "16 bits": 989e12},
}
CARD = 80 << 30  # bytes of memory of either card
# {precision: assumed fraction of the bytes that activations have in float32}. Autocast keeps the
# norms and what follows them in float32: 0.5 to 0.9 were counted, by the network.
SAVED = {"float32": 1.0, "TF32": 1.0, "16 bits": 0.8}
# {class of data: number of test items}, where no configuration key sets the number.
TEST_ITEMS = {
    "triptych.data.digits.Digits": N_TEST,
    "triptych.data.cifar10.Cifar10": 10_000,
    "triptych.data.mnist.Mnist": 10_000,
    "triptych.data.mnist.FashionMnist": 10_000,
}
ITEMS = 5000  # assumed number of validation items and of test items of other data
# Single-precision operations per second on one CPU core, from benchmarks/training_step.py.
CORE = 50e9
CLASSES = 1000  # assumed number of classes in a folder of images, which is not read
DIFFUSION = "triptych.models.diffusion.Diffusion"
# The config groups that determine the network.
PARTS = ("denoiser", "model", "process", "data", "augmentation", "objective", "bound")
FLOAT = 4  # bytes per number
CHECKPOINTS = 2  # number of checkpoints that a run keeps: last and best
# Assumptions on a GPU, not measured: bytes of CUDA's context and its libraries in each process, and
# bytes that the allocator reserves for each byte of tensors.
CONTEXT, RESERVED = 2**30, 1.25
TOO_LARGE = "; too large for the 80 GiB of an A100 or H100, so no hours are estimated"


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """A hook that keeps the tensors that autograd saves for the backward pass, to count them.

    If they were freed, another tensor could reuse a storage's address and not be counted.
    """

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        super().__init__(self.record_tensor, lambda tensor: tensor)

    def record_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Keep a reference to a tensor's storage; return the tensor, as the hook requires."""
        storage = tensor.untyped_storage()
        self.storages.setdefault(storage._cdata, storage)
        return tensor

    def bytes_excluding(self, tensors: Iterable[torch.Tensor]) -> int:
        """Return the bytes of all saved tensors except these."""
        left_out = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(
            storage.nbytes() for key, storage in self.storages.items() if key not in left_out
        )


class Cost(NamedTuple):
    """The size of a network, the cost of one training item, and the assumptions of the count."""

    parameters: int
    forward: float  # operations of a forward pass
    operations: float  # operations of training: forward and backward
    activations: float  # bytes that autograd saves
    assumed: str = ""


def check_countable(config: Config) -> None:
    """Raise UserError if a run trains no network, or if its number of steps is not known."""
    if config["model"]["_target_"] != DIFFUSION or not config["denoiser"] or config["trained"]:
        raise UserError(
            "plan=true: supports only model=diffusion with a network to train; leave it out"
        )
    if not config["trainer"].get("max_steps"):
        epochs = f"trainer.max_epochs={config['trainer'].get('max_epochs')}"
        raise UserError(
            f"plan=true: the length {epochs} depends on the data; use trainer.max_steps"
        )


def network_cost(config: Config) -> Cost:
    """Count the cost of a configuration's network; UserError if no network is trained."""
    check_countable(config)
    return count_network_cost(config)


def count_network_cost(config: Config) -> Cost:
    """Count the cost of the network of a configuration that has a denoiser."""
    try:
        return _cost(config, "meta")
    except Exception:  # user-supplied code may read values, which meta tensors lack
        return _cost(config, "cpu")


def _cost(config: Config, device: str) -> Cost:
    """Count parameters, FLOPs and saved activations in a network's forward pass on one item.

    ``device``: "meta", which computes no values, or "cpu".
    """
    data = build(config["data"], "data")
    assumed = ""
    if config["model"].get("conditional") and not data.conditions:
        data.num_classes = CLASSES
        assumed = f"assumed: {CLASSES:,} classes, as data={data.name} is not read"
    table = injection_table(dict(config), data)
    # Build these outside of the meta device, as they need values.
    for part in ("schedule", "process"):
        table.build_at(part)
    attention: Any = nullcontext()
    if device == "cpu":  # FLOPs of other attention kernels are not counted on a CPU
        attention = sdpa_kernel(SDPBackend.MATH)
    counter, saved = FlopCounterMode(display=False), SavedTensors()  # type: ignore[no-untyped-call]  # torch's own
    passes, recomputed = 3, 0
    with torch.device(device), attention:
        network = table.build_at("denoiser").network
        item = _example_inputs(network, data.shape)
        with counter, saved:
            network(*item)
        if config["denoiser"]["network"].get("checkpointing"):
            passes = 4
            recomputed = _largest_block(network, item)
    parameters = list(network.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    forward = float(counter.get_total_flops())
    operations = passes * forward
    activations = float(saved.bytes_excluding(parameters) + recomputed)
    return Cost(size, forward, operations, activations, assumed)


def _largest_block(network: Any, item: tuple[Any, ...]) -> int:
    """Return the bytes that the largest block saves when the backward pass recomputes it."""
    sizes = [0]

    def run_block(block: torch.nn.Module, *inputs: Any) -> torch.Tensor:
        saved = SavedTensors()
        with saved:
            output: torch.Tensor = block(*inputs)
        sizes.append(saved.bytes_excluding(block.parameters()))
        return output

    network.run_block = run_block
    network(*item)
    return max(sizes)


def _example_inputs(network: Any, shape: Sequence[int]) -> tuple[Any, ...]:
    """Return zeros as a network's item, noise level and labels.

    UserError: the network has other conditions than labels.
    """
    if not all(isinstance(kind, Labels) for kind in network.conditions.values()):
        raise UserError(
            "plan=true: supports only networks without conditions, or conditioned on labels alone; "
            "leave it out"
        )
    condition = None
    if network.conditions:
        label = torch.zeros(1, dtype=torch.int64)
        condition = Condition(**dict.fromkeys(network.conditions, label))
    return torch.zeros(1, *shape), torch.zeros(1), condition


def describe_cost(settings: Sequence[tuple[str, int, int, Config]]) -> list[str]:
    """Return the lines of the estimated cost of some settings.

    ``settings``: (name, number of runs, number of fits, configuration) of each setting.
    """
    costs: dict[str, Cost] = {}
    lines: dict[str, None] = {}
    work = defaultdict[str, float](float)  # {precision: operations}
    disk = 0.0
    n_runs = n_fits = 0
    problems = ""
    for _, runs, fits, config in settings:
        n_runs += runs
        n_fits += fits
        network = str([config.get(part) for part in PARTS])
        if network not in costs:
            costs[network] = network_cost(config)
        cost = costs[network]
        batches = count_batches(config)
        problem = memory_problem(config, cost)
        problems += problem
        lines[network_line(config, cost, batches) + problem] = None
        trained = fits * batches * config["data"]["batch_size"]
        work[training_precision(config)] += trained * cost.operations
        work["float32"] += runs * count_evaluations(config) * cost.forward
        disk += runs * CHECKPOINTS * FLOAT * cost.parameters * (3 + count_averages(config))
    hours = []
    if not problems:
        hours = [hours_line(work)]
    assumed = [cost.assumed for cost in costs.values()]
    assumed += [assumed_items(config) for *_, config in settings]
    amounts = [f"{operations:.3g} FLOP in {name}" for name, operations in work.items()]
    return [
        f"{count_noun(n_runs, 'run')}, not started",
        *lines,
        *dict.fromkeys(filter(None, assumed)),
        f"{count_noun(n_fits, 'fit')}, validation, bounds and samples: {', '.join(amounts)}",
        *hours,
        f"on a CPU: {duration(sum(work.values()) / CORE)} of one core, at {CORE / 1e9:g} GFLOP a "
        "second in float32",
        f"disk: {three_digits(disk / 2**30)} GiB of checkpoints",
        *(f"{count_noun(runs, 'run')}: {name}" for name, runs, _, _ in settings),
    ]


def hours_line(work: Mapping[str, float]) -> str:
    """Return a line with each card's hours for ``work``, which is {precision: operations}."""
    hours = []
    for card, peaks in PEAKS.items():
        seconds = sum(work[name] / peaks[name] for name in work) / UTILISATION
        hours.append(f"{three_digits(seconds / 3600)} hours on one {card}")
    return f"{', '.join(hours)} at {UTILISATION:.0%} of the peak"


def training_precision(config: Config) -> str:
    """Return the precision of a GPU's multiplications in training, as named in ``PEAKS``."""
    if str(config["trainer"]["precision"]).endswith("mixed"):
        return "16 bits"
    if config["trainer"].get("tf32"):
        return "TF32"
    return "float32"


def count_evaluations(config: Config) -> int:
    """Count the items that validation, bounds and samples pass through the network.

    All samples count with the evaluations of ``sampler``, even if ``measures.over`` varies these.
    """
    bound, measures, data = config["bound"], config["measures"], config["data"]
    val = data.get("val_size", ITEMS)
    test = data.get("test_size", TEST_ITEMS.get(data["_target_"], ITEMS))
    validations = config["trainer"]["max_steps"] // config["trainer"]["val_check_interval"]
    bounds = (val + test) * bound["repeats"] + validations * val * bound["val_repeats"]
    drawn = measures["n"] * measures["repeats"] * max(1, len(measures["values"]))
    calls = build(config["sampler"], "sampler").evaluations
    if config["guidance"]:
        calls *= 2
    return int(bounds + calls * (config["samples"]["n"] + drawn))


def assumed_items(config: Config) -> str:
    """Return a line that states the assumed numbers of items; "" if all are known."""
    data = config["data"]
    if "test_size" in data or data["_target_"] in TEST_ITEMS:
        return ""
    return f"assumed: {ITEMS:,} validation and test items each, as the data are not read"


def memory_problem(config: Config, cost: Cost) -> str:
    """State that a run is too large for a card, and which overrides help; "" if it may fit."""
    if run_memory(config, cost) <= CARD:
        return ""
    if run_memory(config, cost, parts=math.inf) > CARD:
        return f"{TOO_LARGE}: use trainer=fsdp callbacks.ema=null weights=raw on more devices"
    trainer, batch, devices = config["trainer"], config["data"]["batch_size"], count_devices(config)
    # Parts of equal size, so that a step has as many items as before.
    sizes = [n for n in range(2, batch // devices + 1) if batch % n == 0]
    parts = [n for n in sizes if run_memory(config, cost, n) <= CARD]
    if not parts:
        return f"{TOO_LARGE}: even one item per device does not fit"
    strategy = "fsdp" if trainer["strategy"] == "fsdp" else "ddp"
    accumulated = trainer.get("accumulate_grad_batches", 1) * parts[0]
    return (
        f"{TOO_LARGE}: trainer={strategy} on {devices * parts[0]} devices fits, or "
        f"trainer.accumulate_grad_batches={accumulated} data.batch_size={batch // parts[0]}"
    )


def count_batches(config: Config) -> int:
    """Return how many batches a fit computes."""
    return int(config["trainer"]["max_steps"] * config["trainer"].get("accumulate_grad_batches", 1))


def count_averages(config: Config) -> int:
    """Return how many averages of the weights a run keeps."""
    others = OmegaConf.select(OmegaConf.create(dict(config)), "callbacks.ema.others")
    return 1 + len(others or [])


def network_line(config: Config, cost: Cost, batches: int) -> str:
    """Describe a network and its training: parameters, operations, batches, memory of a device."""
    batch = config["data"]["batch_size"]
    name = str(config["denoiser"]["network"]["_target_"]).rpartition(".")[2]
    devices = count_devices(config)
    millions = three_digits(batches * batch / 1e6)
    memory = sum(device_memory(config, cost))
    line = (
        f"{name}: {cost.parameters / 1e6:.1f} million parameters, "
        f"{three_digits(cost.operations / 1e9)} GFLOP per item, forward and backward; "
        f"{batches:,} batches of {batch:,} items, {millions} million items; "
        "weights, averages, gradients, AdamW and activations "
        f"{three_digits(memory / 2**30)} GiB in float32"
    )
    if devices > 1:
        line += f" on each of {devices} devices"
    return line


def device_memory(config: Config, cost: Cost) -> tuple[float, float]:
    """Return two numbers of bytes on a device: of states, and of activations.

    States are the weights, their averages, gradients and the optimizer's moments.
    """
    devices = count_devices(config)
    states = FLOAT * cost.parameters * (4.0 + count_averages(config))
    if config["trainer"]["strategy"] == "fsdp":
        states /= devices
    return states, cost.activations * config["data"]["batch_size"] / devices


def run_memory(config: Config, cost: Cost, parts: float = 1) -> float:
    """Return the bytes that a run's process needs on a GPU, with each batch in so many parts.

    ``plan=true`` and the local launcher both decide by it what fits.
    """
    states, activations = device_memory(config, cost)
    saved = SAVED[training_precision(config)] * activations
    return CONTEXT + RESERVED * (states + saved / parts)


def known_run_memory(config: Config) -> float:
    """Return the bytes that a run's process needs on a GPU; infinity if they are not known."""
    if config["model"]["_target_"] != DIFFUSION:
        return math.inf
    try:
        cost = count_network_cost(config)
    except Exception:  # user-supplied code, or conditions that cannot be made up
        return math.inf
    return run_memory(config, cost)


def answer() -> None:
    """Print torch's GPU, its free bytes and those that the largest run needs; null without a GPU.

    Standard input holds the runs' configurations as a JSON list.
    """
    card = None
    if torch.cuda.is_available():
        card = {
            "name": torch.cuda.get_device_name(),
            "free": torch.cuda.mem_get_info()[0],
            "needed": max(map(known_run_memory, json.load(sys.stdin)), default=math.inf),
        }
    print(json.dumps(card))


def count_devices(config: Config) -> int:
    """Return the number of devices of a run; one per node if the machine determines it."""
    devices = config["trainer"]["devices"]
    number = 1
    if isinstance(devices, list):
        number = len(devices)
    elif str(devices).isdigit():
        number = int(devices)
    return number * int(config["trainer"]["num_nodes"])
