"""Measure a U-Net's training step beside other packages' U-Nets and beside its own convolutions.

    python benchmarks/unet_step.py [--repeats 5] [--size 1M] [--batch 64]

The U-Nets have the same size. A step is the squared error of epsilon on 1x28x28, forward and
backward, and a fused AdamW, in channels-last layout. CPU seconds of one thread, one step of each in
turn, each in a separate process: ours as a run sets it up (``set_up_torch``) and with
``compile=true``, the others as they come. The convolutions alone, at the network's own shapes and
with our set-up, are a lower bound for every network of these layers with the same algorithm.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from record import interleave, ratio, record
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from triptych.networks.unet import UNet
from triptych.run.model import set_up_torch

COMPILED, CONVOLUTIONS = "triptych, compiled", "convolutions"
WIDTHS = {"1M": (32, 48, 48), "5M": (48, 96, 128)}


def ours(size: str) -> nn.Module:
    network = UNet((1, 28, 28), widths=WIDTHS[size])

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, t):
            return self.network(x, 18.3 * t - 13.3)

    return Ours()


def peers(size: str) -> dict[str, nn.Module]:
    """Return the U-Nets of installed packages."""
    known: dict[str, nn.Module] = {}
    try:
        from diffusers import UNet2DModel

        class Diffusers(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = UNet2DModel(
                    sample_size=28,
                    in_channels=1,
                    out_channels=1,
                    layers_per_block=2,
                    block_out_channels={"1M": (32, 48, 48), "5M": (48, 96, 128)}[size],
                    norm_num_groups=8,
                    attention_head_dim=16,
                    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
                    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
                )

            def forward(self, x, t):
                return self.network(x, 1000 * t, return_dict=False)[0]

        known["diffusers"] = Diffusers()
    except ImportError:
        print("diffusers is not installed: its row is left out")
    try:
        from denoising_diffusion_pytorch import Unet

        class Lucidrains(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = Unet(dim={"1M": 20, "5M": 44}[size], dim_mults=(1, 2, 4), channels=1)

            def forward(self, x, t):
                return self.network(x, 1000 * t)

        known["denoising-diffusion-pytorch"] = Lucidrains()
    except ImportError:
        print("denoising-diffusion-pytorch is not installed: its row is left out")
    return known


def stepper(network: nn.Module, batch: int):
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    x = torch.rand(batch, 1, 28, 28) * 2 - 1

    def step() -> None:
        t, eps = torch.rand(batch), torch.randn_like(x)
        angle = 1.5 * t[:, None, None, None]
        z = (angle.cos() * x + angle.sin() * eps).contiguous(memory_format=torch.channels_last)
        loss = (network(z, t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def convolutions(network: nn.Module, batch: int):
    """Return a run of the network's convolutions alone, forward and backward, at its shapes."""
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: shapes.append((layer, given[0].shape)))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    network(torch.zeros(batch, 1, 28, 28), torch.zeros(batch))
    for hook in hooks:
        hook.remove()
    ready = []
    for place, (layer, shape) in enumerate(shapes):
        x = (
            torch.randn(shape)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_(place > 0)
        )
        ready.append((layer, x, torch.randn_like(layer(x))))

    def run() -> None:
        for layer, x, gradient in ready:
            torch.autograd.backward(layer(x), gradient)

    return run


def operations(network: nn.Module) -> float:
    """Return the floating-point operations of one item, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(4, 1, 28, 28), torch.rand(4)).square().mean().backward()
    return counter.get_total_flops() / 4


def work(name: str, size: str, batch: int, parent: Connection) -> None:
    """Run a step and send its CPU seconds each time that the parent sends true.

    First send the network's parameters and operations.
    """
    own = name in ("triptych", COMPILED, CONVOLUTIONS)
    if own:
        set_up_torch(threads=1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ours(size) if own else peers(size)[name]
    parent.send((sum(p.numel() for p in network.parameters()), operations(network)))
    if name == COMPILED:
        network.network.compile()
    step = convolutions(network, batch) if name == CONVOLUTIONS else stepper(network, batch)
    while parent.recv():
        start = time.process_time()
        step()
        parent.send(time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", choices=WIDTHS, default="1M")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    context, runs, networks, workers = multiprocessing.get_context("spawn"), {}, {}, []
    for name in ["triptych", COMPILED, *peers(options.size), CONVOLUTIONS]:
        here, there = context.Pipe()
        context.Process(
            target=work, args=(name, options.size, options.batch, there), daemon=True
        ).start()
        workers.append(here)
        networks[name] = here.recv()

        def step(worker: Connection = here) -> float:
            worker.send(True)
            return worker.recv()

        runs[name] = step
        step()  # the first step compiles
    seconds = interleave(runs, options.repeats)
    for worker in workers:
        worker.send(False)
    figures = {}
    for name, (parameters, flops) in networks.items():
        median = statistics.median(seconds[name])
        figures[name] = {
            "parameters": parameters,
            "images_a_second": options.batch / median,
            "gflop_an_image": flops / 1e9,
            "gflop_a_second": flops * options.batch / median / 1e9,
            "seconds": seconds[name],
        }
        print(
            f"{name:30s} {parameters / 1e6:5.2f} M  {options.batch / median:6.1f} images/s  "
            f"{flops * options.batch / median / 1e9:5.1f} GFLOP/s"
        )
    ratios = {
        f"{what} / {name}'s": ratio(seconds, own, name)
        for what, own in (("step", "triptych"), ("compiled step", COMPILED))
        for name in networks
        if name not in ("triptych", COMPILED)
    }
    record(f"unet_step_{options.size}_{options.batch}", ratios, figures)


if __name__ == "__main__":
    main()
