"""Measure what a training step costs beside the network, against a bare loop or Trainer.fit.

    python benchmarks/training_step.py [--repeats 7] [--steps 60]

Ours is the code that a run uses: Lightning's Trainer on the run's LightningModule, with averaged
weights, gradient clipping, logging to metrics.csv and the accounts of the bound. The bare loop has
the same network, optimiser, clipping, loss, times and noise, and nothing else. CPU seconds of one
thread, in blocks of steps in turn (A B A B ...). Ratios are of neighbouring blocks, so a machine
that slows down affects both. A small perceptron is compared with a plain module in a plain
``Trainer``, because Lightning alone takes a third of its time.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytorch_lightning as pl
import torch
from record import record

from triptych.callbacks.ema import EMA
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import Categorical, GaussianDensity
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.loss import Elbo
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.models.diffusion import Diffusion
from triptych.models.gradients import Gradients
from triptych.models.lr_schedule import Cosine
from triptych.networks.mlp import MLP
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet
from triptych.run.metrics import MetricsCsv
from triptych.run.stopping import Stop
from triptych.run.trainer import NoProfiler

CLIP = 1.0  # norm at which gradients are clipped
CASES = {
    "digits network, 0.1M, 64 x 1x8x8": (
        lambda: ResNet((1, 8, 8), spacing=0.125),
        64,
        (1, 8, 8),
        17,
    ),
    "U-Net, 1M, 16 x 1x28x28": (lambda: UNet((1, 28, 28)), 16, (1, 28, 28), 256),
    "perceptron, 256 x 2": (lambda: MLP((2,), width=64, blocks=1), 256, (2,), None),
}


class Batches:
    """An endless iterator over the same random batches, for both sides."""

    def __init__(self, batch: int, shape: tuple[int, ...]):
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            Batch(torch.rand(batch, *shape, generator=generator) * 2 - 1, None, torch.arange(batch))
            for _ in range(8)
        ]

    def __iter__(self):
        step = 0
        while True:
            yield self.batches[step % 8]
            step += 1


def optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


class Clock(pl.Callback):
    """Measure CPU seconds from the end of the warm-up to the last step."""

    def __init__(self, warmup: int):
        self.warmup = warmup

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.warmup:
            self.start = time.process_time()
        self.end = time.process_time()


def fit(model, callbacks, logger, batches, steps, warmup) -> float:
    """Return the seconds per step in Lightning's trainer."""
    clock = Clock(warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps + warmup,
            max_epochs=-1,
            accelerator="cpu",
            gradient_clip_val=CLIP,
            log_every_n_steps=20,
            callbacks=[*callbacks, clock],
            logger=logger and MetricsCsv(Path(folder) / "metrics.csv", time.monotonic),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            profiler=NoProfiler() if logger else None,
        )
        trainer.fit(model, batches)
    return (clock.end - clock.start) / steps


class Plain(pl.LightningModule):
    """A module with the same network and loss, and nothing else."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, _):
        return loss_of(self.network, batch.x)

    def configure_optimizers(self):
        return optimizer(self.network.parameters())


def ours(network, batches, shape, levels, steps, warmup) -> float:
    """Return the seconds per step of the code that a run uses."""
    schedule = Linear(-8.0, 6.0)
    decoder = GaussianDensity() if levels is None else Categorical(levels)
    model = Diffusion(
        Denoiser(network, Output("epsilon"), VariancePreserving()),
        schedule,
        Objective("epsilon", Elbo()),
        Bound(schedule, decoder),
        optimizer=optimizer,
        lr_schedule=Cosine(10),
        shape=shape,
        discrete=levels is not None,
        seed=0,
        repeats=1,
        val_repeats=1,
    )
    return fit(model, [EMA(others=[0.1]), Gradients(CLIP), Stop()], True, batches, steps, warmup)


def loss_of(network, x):
    """Return the bound's diffusion term at evenly spaced times, in nats per dimension."""
    t = (torch.rand(()) + torch.arange(len(x)) / len(x)) % 1
    gamma = -8.0 + 14.0 * t
    alpha, sigma = (
        torch.sigmoid(sign * gamma).sqrt().view(-1, *(1,) * (x.ndim - 1)) for sign in (-1, 1)
    )
    eps = torch.randn_like(x)
    return 7.0 * (network(alpha * x + sigma * eps, gamma) - eps).square().mean()


def bare(network, batches, shape, steps, warmup) -> float:
    """Return the seconds per step of a plain loop."""
    made = optimizer(network.parameters())
    network.train()
    for step, batch in enumerate(batches):
        if step == warmup:
            start = time.process_time()
        if step == warmup + steps:
            return (time.process_time() - start) / steps
        loss = loss_of(network, batch.x)
        made.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        made.step()
    raise AssertionError("the batches are endless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="timed steps a block of the small network; a quarter for the U-Net",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    print(
        "| network | plain, ms a step | ours, ms a step | ratio, median (all) |\n|---|---|---|---|"
    )
    for name, (make, batch, shape, levels) in CASES.items():
        torch.manual_seed(0)
        first = make()
        batches = Batches(batch, shape)
        steps = max(5, arguments.steps // 4) if "U-Net" in name else arguments.steps
        pairs = []
        for repeat in range(-1, arguments.repeats):
            if levels is None:
                a = fit(Plain(copy.deepcopy(first)), [], False, batches, 5 * steps, 5)
            else:
                a = bare(copy.deepcopy(first), batches, shape, steps, 5)
            b = ours(
                copy.deepcopy(first), batches, shape, levels, steps if levels else 5 * steps, 5
            )
            if repeat >= 0:  # the first pair warms the machine
                pairs.append((a, b))
        ratios = sorted(b / a for a, b in pairs)
        row = {
            "network": name,
            "parameters": sum(p.numel() for p in first.parameters()),
            "bare_ms": 1e3 * statistics.median(a for a, _ in pairs),
            "ours_ms": 1e3 * statistics.median(b for _, b in pairs),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
        rows.append(row)
        shown = ", ".join(f"{r:.3f}" for r in ratios)
        print(
            f"| {name} ({row['parameters']:,}) | {row['bare_ms']:.2f} | {row['ours_ms']:.2f} "
            f"| {row['ratio']:.3f} ({shown}) |",
            flush=True,
        )
    record("training_step", {f"{row['network']}: ours / bare": row["ratio"] for row in rows}, rows)


if __name__ == "__main__":
    main()
