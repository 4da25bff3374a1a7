"""What a training step costs beside the network: ours against a bare PyTorch loop, interleaved.

    python benchmarks/training_step.py [--repeats 7] [--steps 60]

Ours is the real path: Lightning's Trainer on the run's LightningModule, with the averaged weights, gradient
clipping, logging to metrics.csv and the bookkeeping of the bound. The bare loop has the same network,
optimiser, clipping, loss, times and noise, and nothing else. CPU seconds of one thread, blocks of steps in
turn (A B A B ...); ratios are of neighbouring blocks, so a machine that slows down slows both.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytorch_lightning as pl
import torch

from triptych.callbacks.ema import EMA
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import Categorical
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.loss import Elbo
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.models.diffusion import Diffusion
from triptych.models.lr_schedule import Cosine
from triptych.networks.resnet import ResNet
from triptych.networks.unet import UNet
from triptych.run.metrics import MetricsCsv

CASES = {
    "digits network, 0.1M, 64 x 1x8x8": (lambda: ResNet((1, 8, 8), spacing=0.125), 64, (1, 8, 8), 17),
    "U-Net, 1M, 16 x 1x28x28": (lambda: UNet((1, 28, 28)), 16, (1, 28, 28), 256),
}


class Batches:
    """The same random batches for both sides, endlessly."""

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
    """CPU seconds from after the warm-up to the last step."""

    def __init__(self, warmup: int):
        self.warmup = warmup

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.warmup:
            self.start = time.process_time()
        self.end = time.process_time()


def ours(network, batches, shape, levels, steps, warmup) -> float:
    """Seconds a step of the real path."""
    schedule = Linear(-8.0, 6.0)
    model = Diffusion(
        Denoiser(network, Output("epsilon"), VariancePreserving()),
        schedule,
        Objective("epsilon", Elbo()),
        Bound(schedule, Categorical(levels)),
        optimizer=optimizer,
        lr_schedule=Cosine(10),
        shape=shape,
        discrete=True,
        seed=0,
        repeats=1,
        val_repeats=1,
    )
    clock = Clock(warmup)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps + warmup,
            max_epochs=-1,
            accelerator="cpu",
            gradient_clip_val=1.0,
            log_every_n_steps=20,
            callbacks=[EMA(others=[0.1]), clock],
            logger=MetricsCsv(Path(folder) / "metrics.csv"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, batches)
    return (clock.end - clock.start) / steps


def bare(network, batches, shape, steps, warmup) -> float:
    """Seconds a step of a plain loop."""
    made = optimizer(network.parameters())
    network.train()
    for step, batch in enumerate(batches):
        if step == warmup:
            start = time.process_time()
        if step == warmup + steps:
            return (time.process_time() - start) / steps
        x = batch.x
        t = (torch.rand(()) + torch.arange(len(x)) / len(x)) % 1
        gamma = -8.0 + 14.0 * t
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        eps = torch.randn_like(x)
        z = alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * eps
        loss = 7.0 * (network(z, gamma) - eps).square().mean()
        made.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
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
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    print("| network | bare, ms a step | ours, ms a step | ratio, median (all) |\n|---|---|---|---|")
    for name, (make, batch, shape, levels) in CASES.items():
        torch.manual_seed(0)
        first = make()
        batches = Batches(batch, shape)
        steps = arguments.steps if "0.1M" in name else max(5, arguments.steps // 4)
        pairs = []
        for repeat in range(-1, arguments.repeats):
            a = bare(copy.deepcopy(first), batches, shape, steps, 5)
            b = ours(copy.deepcopy(first), batches, shape, levels, steps, 5)
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
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
