"""``plan=true``: what a run or a sweep would cost, counted before anything of it starts.

Networks are made on the ``meta`` device, or one's own that cannot be, on the CPU. Operations are those of one
item forward, by torch's formulas, and twice as many backward; activations are what autograd saves. Hours are
operations over a card's peak rate times a utilisation, so without validation, the account and samples.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from triptych.config.build import build, targets
from triptych.config.identity import leaves
from triptych.config.own_code import is_trusted
from triptych.data.layout import check_folder
from triptych.data.source import FOLDERS
from triptych.diffusion.condition import Condition, Labels
from triptych.errors import UserError
from triptych.run.model import parts_table
from triptych.study.formatting import duration, quantity, three_digits

CARDS = {"A100": 312e12, "H100": 989e12}  # dense bfloat16 operations a second, by their data sheets
UTILISATION = 0.35
CORE = 50e9  # single-precision operations a second of a step on one CPU core (benchmarks/training_step.py)
CLASSES = 1000  # of a folder that is not read
DIFFUSION, ORACLE = "triptych.models.diffusion.Diffusion", "triptych.models.oracle.OracleModel"
VALUES = {"schedule", "process"}  # whose values are computed with, and which change no network's size
PARTS = ("denoiser", "model", "process", "data", "augmentation")  # which a network's sizes follow from
FLOAT = 4  # bytes
WHOLE = 2  # whole checkpoints that a run keeps: the last and the best


class Operations(TorchDispatchMode):
    """Add up the operations of what runs within, as FlopCounterMode does, which follows each module, too."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Cost(NamedTuple):
    """Of one network: parameters, operations of a training item, bytes autograd saves for it, assumptions."""

    parameters: int
    operations: float
    activations: float
    assumed: str = ""


def network_cost(config: Mapping[str, Any], known: dict[object, Cost] | None = None) -> Cost:
    """Return the cost of a model's network, or of an equal one in ``known``; UserError: none to count."""
    try:
        return _cost(config, known, "meta")
    except Exception:  # of code that reads a tensor's numbers
        if not _is_own(config):
            raise
        return _cost(config, known, "cpu")


def _cost(config: Mapping[str, Any], known: dict[object, Cost] | None, device: str) -> Cost:
    if config["model"]["_target_"] == ORACLE:
        raise UserError("plan=true: nothing to train, no cost to count; leave it out")
    if config["model"]["_target_"] != DIFFUSION or not config["denoiser"]:
        which = "only for model=diffusion with a network to train, whose cost it counts"
        raise UserError(f"plan=true: {which}; leave it out")
    if config["trained"] is not None:
        raise UserError(f"plan=true: trained={config['trained']} is not fitted again; nothing is counted")
    if not config["trainer"].get("max_steps"):
        epochs = f"trainer.max_epochs={config['trainer'].get('max_epochs')}"
        raise UserError(f"plan=true: {epochs} depends on the data, which are not read; use trainer.max_steps")
    data = build(config["data"], "data")
    assumed = ""
    if config["model"].get("conditional") and not data.conditions:
        data.num_classes = CLASSES
        assumed = f"{CLASSES:,} classes, as data={data.name} is not read"
    table = parts_table(dict(config), data)  # not on meta: of the truth the values are needed
    kept: dict[int, torch.Tensor] = {}  # alive until counted, so that no storage has the place of another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    for place in VALUES:
        table.at(place)
    if known is None:
        known = {}
    facts = {"output": config["objective"].get("output"), "variance": config["bound"].get("variance")}
    made_of = _typed({part: config.get(part) for part in PARTS} | facts)
    if made_of in known and not _is_own(config):  # one's own may ask for more than these
        return known[made_of]._replace(assumed=assumed)
    with torch.device(device):
        network = table.at("denoiser").network
        if not all(isinstance(kind, Labels) for kind in network.conditions.values()):
            raise UserError("plan=true: for networks without conditions other than labels; leave it out")
        key = _typed(config["denoiser"]["network"]), data.shape, *(p.shape for p in network.parameters())
        if key in known:
            return known.setdefault(made_of, known[key]._replace(assumed=assumed))
        labels = {name: torch.zeros(1, dtype=torch.int64) for name in network.conditions}
        item = torch.zeros(1, *data.shape), torch.zeros(1), Condition(**labels) if labels else None
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        # of the CPU's attention torch's counter knows plain products alone
        plain = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
        counter = Operations()  # type: ignore[no-untyped-call]  # torch's own
        with counter, saved, plain:
            network(*item)
    parameters = list(network.parameters())
    for parameter in parameters:
        kept.pop(parameter.untyped_storage()._cdata, None)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    size = sum(p.numel() for p in parameters)
    known[made_of] = known[key] = Cost(size, 3.0 * counter.total, float(activations), assumed)
    return known[key]


def _is_own(config: Mapping[str, Any]) -> bool:
    """Return whether the denoiser has code of the user's own."""
    return any(is_trusted(str(node["_target_"])) for _, node in targets(config["denoiser"], "denoiser"))


def _typed(node: Any) -> str:
    """Return values as text; of a dropout only whether it is above 0: its mask has the same size."""
    return str([(k, bool(v) if "dropout" in k and isinstance(v, float) else v) for k, v in leaves(node)])


def plan(settings: Sequence[tuple[str, int, int, Mapping[str, Any]]]) -> list[str]:
    """Return the lines that describe settings, each by name, number of runs, of fits, and configuration."""
    for *_, config in settings:  # their data may lie elsewhere, but a file here is no folder there
        root = Path(str(config["data"].get("root") or ".")).expanduser()
        if str(config["data"]["_target_"]) in FOLDERS and root.exists():
            check_folder(root)
    assumed: dict[str, None] = {}
    networks: dict[str, None] = {}
    known: dict[object, Cost] = {}
    operations = disk = 0.0
    for _, runs, fits, config in settings:
        cost = network_cost(config, known)
        assumed |= {cost.assumed: None} if cost.assumed else {}
        parameters = cost.parameters
        target = str(config["denoiser"]["network"]["_target_"]).rpartition(".")[2]
        averages = 1 + len(((config.get("callbacks") or {}).get("ema") or {}).get("others") or [])
        trainer, batch = config["trainer"], config["data"]["batch_size"]
        batches = trainer["max_steps"] * trainer.get("accumulate_grad_batches", 1)
        devices = _count(trainer["devices"]) * trainer["num_nodes"]
        # weights, gradients and AdamW's two moments, of which each device of fsdp has a share
        states = FLOAT * parameters * 4 / (devices if trainer["strategy"] == "fsdp" else 1)
        memory = states + cost.activations * batch / devices
        operations += fits * cost.operations * batches * batch
        disk += runs * WHOLE * FLOAT * parameters * (3 + averages)
        line = (
            f"{target}: {parameters / 1e6:.1f} million parameters, "
            f"{three_digits(cost.operations / 1e9)} GFLOP an item forward and backward; "
            f"{batches:,} batches of {batch:,} items, {three_digits(batches * batch / 1e6)} million items; "
            f"weights, gradients, AdamW and activations {three_digits(memory / 2**30)} GiB in float32"
            + (f" on each of {devices} devices" if devices > 1 else "")
        )
        networks[line] = None
    hours = ", ".join(
        f"{three_digits(operations / rate / UTILISATION / 3600)} hours on one {card}"
        for card, rate in CARDS.items()
    )
    counted = quantity(sum(fits for *_, fits, _ in settings), "fit")
    return [
        f"{quantity(sum(runs for _, runs, *_ in settings), 'run')}, nothing is started",
        *networks,
        *(f"assumed: {text}" for text in assumed),
        f"{counted}: {operations:.3g} FLOP; {hours} in bfloat16 at {UTILISATION:.0%} of the peak",
        f"on a CPU: {duration(operations / CORE)} of one core, at {CORE / 1e9:g} GFLOP a second in float32",
        f"disk: {three_digits(disk / 2**30)} GiB of checkpoints",
        *(f"{quantity(runs, 'run')}: {name}" for name, runs, *_ in settings),
    ]


def _count(devices: Any) -> int:
    """Count the devices of ``trainer.devices``; one where the machine decides."""
    if isinstance(devices, str):
        devices = int(devices) if devices.isdigit() else 1
    return len(devices) if isinstance(devices, list) else max(devices, 1)
