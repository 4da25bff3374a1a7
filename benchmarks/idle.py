"""Measure what the main thread of one process does in a training step beside the network.

    PYTHONPATH=. python benchmarks/idle.py [--rounds 3] [--steps 40] [ROW ...]

A run's own fit on the CPU: Lightning's Trainer, our model, callbacks, loader and logger. The
network has the modules and as many tensors of weights as the real one, but a number in each, and
items have one number: what is left is what the main thread does whatever the sizes. The network's
forward pass is one product, and its gradients are set by hand; neither is counted. Batches of real
size are prepared apart. Milliseconds are the main thread's CPU time, by part and without overlap;
rows take turns, and figures are medians over steps, of logging the mean over all steps.

A list of tensors (averages, clipping, AdamW) is walked through tensor by tensor here, on a GPU in a
few kernels. Any other operator there also launches a kernel: its assumed time is added for each.
Expected too, not measured: the step on an H100, by the network's counted operations at 35% of the
peak as in ``plan=true``, and the time in which noise is written at the speed of its memory.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from record import record
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.config.build import build
from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.data.base import DataModule
from triptych.data.batch import Batch, Split
from triptych.data.cache import MappedRows
from triptych.data.order import TrainLoader, TrainOrder
from triptych.data.source import FOLDERS
from triptych.diffusion.block_draws import BLOCK, BlockDraws
from triptych.diffusion.condition import Condition
from triptych.diffusion.draws import CPU
from triptych.models.diffusion import Diffusion
from triptych.run.checkpoints import CheckpointSaver
from triptych.run.directory import RunDirectory
from triptych.run.experiment import Experiment
from triptych.run.fit import build_callbacks
from triptych.run.metrics import MetricsCsv
from triptych.run.model import injection_table, set_up_torch
from triptych.run.progress import Progress
from triptych.run.stopping import Stop
from triptych.run.trainer import build_trainer
from triptych.study.plan import CLASSES, FLOAT, PEAKS, UTILISATION, count_network_cost

RATE = UTILISATION * PEAKS["H100"]["16 bits"]  # operations a second
BANDWIDTH = 3.35e12  # bytes a second of an H100 SXM, from its data sheet
LAUNCH = 0.005  # milliseconds of the main thread to launch a kernel: assumed
WARM_UP, BATCHES = 5, 4
PARTS = ("data", "draws", "copies", "loss", "EMA", "clipping", "AdamW", "logging", "loop")
OTHERS = [part for part in PARTS if part not in ("draws", "AdamW")]  # AdamW is torch's own
STORED = 2048  # images in memory, which the items of a data set share
SETTINGS = ["threads=1", "logger=csv", "trainer.gradient_clip_val=1", "samples.n=0"]
CIFAR = ["data=cifar10", "data.root=.", "denoiser=unet_ddpm"]
FOLDER = ["data=folder", "data.root=.", "model.conditional=true", "model.label_dropout=0.1"]
ADM = [  # its network, from configs/ablation/base/adm_imagenet64.yaml
    "denoiser=unet_iddpm",
    "denoiser.network.widths=[192, 384, 576, 768]",
    "denoiser.network.attention_at=[32, 16, 8]",
    "denoiser.network.resample=bare_block",
    "+denoiser.network.head_width=64",
]


class Row(NamedTuple):
    """A network with its data, the global batch, the processes and the items of the data set."""

    overrides: list[str]
    batch: int
    world: int
    items: int


ROWS = {
    "digits, 64, 1 process": Row([], 64, 1, 1350),
    "CIFAR-10, 512, 1 GPU": Row(CIFAR, 512, 1, 45_000),
    "CIFAR-10, 4096, 8 GPUs": Row(CIFAR, 4096, 8, 45_000),
    "ADM-64, 2048, 8 GPUs": Row([*FOLDER, "data.size=64", *ADM], 2048, 8, 1_281_167),
    "256 pixels, 256, 1 GPU": Row([*FOLDER, "data.size=256", "denoiser=jit_b"], 256, 1, 1_281_167),
    "256 pixels, 1024, 8 GPUs": Row(
        [*FOLDER, "data.size=256", "denoiser=jit_b"], 1024, 8, 1_281_167
    ),
}
# The same share of items on more processes.
GROWTH = {f"CIFAR-10, {512 * n}, {n} processes": Row(CIFAR, 512 * n, n, 45_000) for n in (1, 8, 64)}


class Enough(Exception):
    """The end of a fit after the measured steps."""


class Stopwatch:
    """CPU time of the main thread by part; a part within another one is not counted in both."""

    def __init__(self) -> None:
        self.part = "loop"
        self.since = time.thread_time_ns()
        self.spent: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.steps: list[Counter[str]] = []
        self.counts: list[Counter[str]] = []

    def switch(self, part: str) -> str:
        """Begin a part and return the one before it."""
        now = time.thread_time_ns()
        self.spent[self.part] += now - self.since
        before, self.part = self.part, part
        self.since = time.thread_time_ns()
        return before

    def end_step(self) -> None:
        """Keep the times and operators of a step."""
        self.switch(self.part)
        self.steps.append(self.spent)
        self.counts.append(self.operators)
        self.spent, self.operators = Counter(), Counter()

    def attach(self, owner: Any, name: str, part: str) -> None:
        """Count the calls of an object's method as a part."""
        method = getattr(owner, name)

        @wraps(method)
        def timed(*arguments: Any, **more: Any) -> Any:
            before = self.switch(part)
            try:
                return method(*arguments, **more)
            finally:
                self.switch(before)

        setattr(owner, name, timed)


class Steps(pl.Callback):
    """Tell the stopwatch where a step ends; end the fit after enough of them."""

    def __init__(self, watch: Stopwatch, steps: int):
        self.watch, self.steps = watch, steps

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.watch.end_step()
        if trainer.global_step == self.steps:
            raise Enough


class TimedLoader:
    """A loader whose batches are counted as a part."""

    def __init__(self, loader: TrainLoader, watch: Stopwatch):
        self.loader, self.watch = loader, watch

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        self.watch.attach(self, "following", "data")
        while True:
            yield self.following(batches)

    def following(self, batches: Iterator[Batch]) -> Batch:
        return next(batches)


class Rank(SingleDeviceStrategy):
    """The first of several processes; what they would exchange stays as it is."""

    def __init__(self, world: int):
        super().__init__(CPU, accelerator=CPUAccelerator())
        self.world_size = world


BUFFERS: dict[tuple[int, ...], Tensor] = {}


def pinned(batch: Batch) -> Batch:
    """Copy a batch into memory that is used again, as the copy to page-locked memory does."""
    buffer = BUFFERS.setdefault(tuple(batch.x.shape), torch.empty_like(batch.x))
    return batch._replace(x=buffer.copy_(batch.x))


def configuration(row: Row) -> dict[str, Any]:
    """Return the configuration of a row's run."""
    overrides = [*row.overrides, *SETTINGS, f"data.batch_size={row.batch}"]
    return to_plain(without_hydra(compose_command("train", overrides)))


def random_data(config: dict[str, Any], row: Row) -> DataModule:
    """Return data of the configured shape with random images in memory."""
    data = build(config["data"], "data")
    data.pin_memory = True
    if config["model"]["conditional"]:
        data.num_classes = CLASSES
    generator = np.random.default_rng(0)
    images = generator.integers(0, data.levels, (STORED, *data.shape), np.uint8)
    rows = generator.integers(0, STORED, row.items)
    # A folder's images are rows of one array on disk, here in memory; other data are a tensor.
    values: Any = MappedRows(images, rows)
    if config["data"]["_target_"] not in FOLDERS:
        values = torch.from_numpy(images[rows])
    label = torch.from_numpy(generator.integers(0, 10, row.items))
    split = Split(values, Condition(label=label), data.levels)
    data.splits = {"train": split, "val": split, "test": split}
    return data


def loader_of(data: DataModule, config: dict[str, Any], row: Row) -> TrainLoader:
    """Return the first process's loader."""
    split = data.splits["train"]
    order = TrainOrder(len(split), row.batch, 0)
    ahead = config["data"]["num_workers"]
    return TrainLoader(split, order, world=row.world, pin_memory=True, ahead=ahead)


def small_loader(config: dict[str, Any], row: Row) -> TrainLoader:
    """Return a loader as the run's, of items with one number."""
    values = torch.zeros(row.items, 1, dtype=torch.uint8)
    label = torch.zeros(row.items, dtype=torch.int64)
    order, ahead = TrainOrder(row.items, row.batch, 0), config["data"]["num_workers"]
    split = Split(values, Condition(label=label), 256)
    return TrainLoader(split, order, world=row.world, pin_memory=True, ahead=ahead)


def build_diffusion(config: dict[str, Any], data: DataModule) -> Diffusion:
    """Build the model, with one number in each tensor of its network."""
    table = injection_table(config, data)
    for part in ("schedule", "process"):  # they need values
        table.build_at(part)
    with torch.device("meta"):
        table.build_at("denoiser")
    model: Diffusion = build(config["model"], "model", table)
    model.random, model.shape, model.event = BlockDraws(), (1,), (1,)
    for module in model.denoiser.network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.ones(1))
        for name in module._buffers:
            module._buffers[name] = torch.ones(1)
    return model


def replace_network(model: Diffusion, watch: Stopwatch) -> None:
    """Leave one product of the network's forward pass, and set the gradients of all weights."""
    network: Any = model.denoiser.network
    weight = next(network.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.ones_like(p) for p in trained]

    def product(z: Tensor, gamma: Tensor, condition: Any = None) -> Tensor:
        return z * weight

    def set_gradients() -> None:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.clone()

    network.forward = product
    model.on_after_backward = set_gradients  # type: ignore[method-assign]
    watch.attach(network, "forward", "network")
    watch.attach(model, "on_after_backward", "network")


def attach(watch: Stopwatch, model: Diffusion, trainer: pl.Trainer) -> None:
    """Say which calls are which part; what is left is the loop."""
    for name in ("training_draw", "uniforms"):
        watch.attach(model.random, name, "draws")
    for name in ("training_step", "backward"):
        watch.attach(model, name, "loss")
    watch.attach(trainer.strategy, "batch_to_device", "copies")
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if name == "EMA":
            watch.attach(callback, "on_train_batch_end", "EMA")
    watch.attach(model, "configure_gradient_clipping", "clipping")
    watch.attach(model, "optimizer_zero_grad", "AdamW")
    for name in ("_log_step", "log"):
        watch.attach(model, name, "logging")
    watch.attach(trainer._logger_connector, "log_metrics", "logging")
    configure = model.configure_optimizers

    def configure_timed() -> Any:
        chosen = configure()
        watch.attach(chosen["optimizer"], "step", "AdamW")
        return chosen

    model.configure_optimizers = configure_timed  # type: ignore[method-assign]


class Operators(TorchDispatchMode):
    """Count operators by part in place of time."""

    def __init__(self, watch: Stopwatch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watch.operators[self.watch.part] += 1
        return func(*args, **(kwargs or {}))


class Case:
    """A row with its data, built once, and its fit, built in each round."""

    def __init__(self, row: Row):
        self.row, self.config = row, configuration(row)
        self.data = random_data(self.config, row)
        self.steps: list[Counter[str]] = []
        self.batches: list[float] = []

    def fit(self, steps: int, mode: type[Operators] | None = None) -> Stopwatch:
        """Fit for some steps after a few to warm up, and return the stopwatch of the former."""
        watch = Stopwatch()
        model = build_diffusion(self.config, self.data)
        self.tensors = sum(p.requires_grad for p in model.parameters())
        replace_network(model, watch)
        with tempfile.TemporaryDirectory() as folder, Stop() as stop:
            run = RunDirectory(Path(folder))
            experiment = Experiment(self.config, self.data, model)
            saver = CheckpointSaver(run, None, 10**6, stop, {})
            shown = [Progress(run, bar=False), stop, saver]
            callbacks = [Steps(watch, WARM_UP + steps), *build_callbacks(run, experiment), *shown]
            strategy = Rank(self.row.world)
            with patch("triptych.run.trainer._strategy", lambda *_: strategy):
                trainer = build_trainer(self.config, run, callbacks, 10**6)
            trainer.loggers = [MetricsCsv(run / "metrics.csv", time.monotonic)]
            trainer.limit_val_batches = 0
            attach(watch, model, trainer)
            loader = TimedLoader(small_loader(self.config, self.row), watch)
            with (
                suppress(Enough),
                mode(watch) if mode else nullcontext(),
                # As on a GPU, all gradients are clipped by a few operators on lists of them.
                patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True),
            ):
                trainer.fit(model, loader)
        watch.steps = watch.steps[1 + WARM_UP :]
        return watch

    def measure(self, steps: int) -> None:
        """Keep the time of some steps, and that of some batches prepared in this thread."""
        self.steps += self.fit(steps).steps
        loader = loader_of(self.data, self.config, self.row)
        for step in range(1 + BATCHES):
            start = time.thread_time()
            loader.batch(step)
            if step > 0:
                self.batches.append(time.thread_time() - start)

    def operators(self) -> dict[str, int]:
        """Return the operators of a step that is not logged, by part."""
        last = self.fit(2, Operators).counts[-1]
        return {part: last[part] for part in PARTS if part in last}

    def figures(self) -> dict[str, Any]:
        """Return milliseconds a step by part, and what is expected of an H100."""
        cost = count_network_cost(self.config)
        items = self.row.batch // self.row.world
        numbers = -(-items // BLOCK) * BLOCK * math.prod(self.data.shape)
        parts = {part: statistics.median(s[part] for s in self.steps) / 1e6 for part in PARTS}
        parts["logging"] = statistics.mean(s["logging"] for s in self.steps) / 1e6
        threads, batch = self.config["data"]["num_workers"], 1e3 * statistics.median(self.batches)
        if not threads:
            parts["data"] = batch
        operators = self.operators()
        return {
            "milliseconds": {part: round(value, 4) for part, value in parts.items()},
            "operators": operators,
            "steps": len(self.steps),
            "tensors": self.tensors,
            "parameters": cost.parameters,
            "threads that prepare batches": threads,
            "a batch in one thread": round(batch, 3),
            "expected step": round(1e3 * items * cost.operations / RATE, 3),
            "expected draws": round(1e3 * FLOAT * numbers / BANDWIDTH, 4),
        }


def share(figures: dict[str, Any], parts: Iterable[str]) -> float:
    """Return the share of some parts in the expected step, with the launch of each operator."""
    spent = (figures["milliseconds"][p] + LAUNCH * figures["operators"].get(p, 0) for p in parts)
    return sum(spent) / figures["expected step"]


def describe(name: str, figures: dict[str, Any]) -> str:
    """Format a row for the terminal."""
    parts = figures["milliseconds"]
    shown = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
    return (
        f"{name}: {shown}; {sum(figures['operators'].values())} operators; draws "
        f"{share(figures, ['draws']):.1%}, all else {share(figures, OTHERS):.1%} of a step of "
        f"{figures['expected step']:.1f} ms; a batch {figures['a batch in one thread']:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of a row in a round")
    parser.add_argument("rows", nargs="*", help="numbers from 0; all rows if there are none")
    options = parser.parse_args()
    set_up_torch(1)
    Batch.pin = pinned  # type: ignore[method-assign]  # there is no GPU to lock pages for
    rows = ROWS | GROWTH
    names = [list(rows)[int(number)] for number in options.rows] or list(rows)
    cases = {name: Case(rows[name]) for name in names}
    for _ in range(options.rounds):
        for case in cases.values():
            case.measure(options.steps)
    figures = {}
    for name, case in cases.items():
        figures[name] = case.figures()
        print(describe(name, figures[name]), flush=True)
    if not options.rows:
        ratios = {f"{name}: draws": share(figures[name], ["draws"]) for name in names}
        ratios |= {f"{name}: all else": share(figures[name], OTHERS) for name in names}
        record("idle", ratios, figures)


if __name__ == "__main__":
    main()
