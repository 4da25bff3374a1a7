"""Measure how cost grows with the network, the image, the batch, the runs and the test items.

    python benchmarks/growth.py [--repeats 3]

It times a training step by the size of network, image and batch, a report by the number of runs,
and a test by the number of items: CPU seconds of one thread, and the peak memory of a separate
process. The exponent b of seconds ~ n^b is fitted by least squares to the larger half of the sizes,
where constant costs no longer matter.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

SIZES = {
    "parameters": [8, 16, 32, 64, 128],  # width of a U-Net on 16x16: .07 to 16 million
    "side": [8, 16, 32, 64],
    "batch": [8, 16, 32, 64, 128],
    "test items": [100, 1000, 10_000, 100_000],
    "runs": [10, 100, 1000, 3000],
}


def step(width: int = 32, side: int = 16, batch: int = 16) -> tuple[float, float]:
    """Return parameters and seconds of a U-Net's training step."""
    import torch

    from triptych.networks.unet import UNet

    torch.set_num_threads(1)
    network = UNet((1, side, side), widths=(width, 2 * width), heads=1)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x, gamma = torch.randn(batch, 1, side, side), torch.zeros(batch)
    laps = []
    for _ in range(4):
        start = time.process_time()
        network(x, gamma).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        laps.append(time.process_time() - start)
    return sum(p.numel() for p in network.parameters()), min(laps[1:])


def test(items: int) -> tuple[float, float]:
    """Return items and the seconds to account for them, with a small network on a ring."""
    from triptych.config.compose import compose_command, to_plain, without_hydra
    from triptych.run.build import build_experiment

    small = [
        "experiment=ring",
        f"data.test_size={items}",
        "threads=1",
        "logger=csv",
        "bound.repeats=1",
    ]
    config = to_plain(without_hydra(compose_command("train", small)))
    experiment = build_experiment(config, download=False)
    model, total = experiment.model, 0.0
    loader = experiment.data.eval_dataloader("test", None)
    start = time.process_time()
    model.accounting.expect(items)
    for batch in loader:
        model._evaluate_batch(batch, 1, {})
        total += len(batch.x)
    model.accounting.compute()
    return total, time.process_time() - start


def report(runs: int) -> tuple[float, float]:
    """Return runs and the seconds to report them: ten settings, with 297 items per run."""
    import numpy as np

    from tests.study.fake_runs import make_run
    from triptych.cli.report import main

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(runs):
            bound = 1.9 + 0.01 * (i % 10) + 0.002 * random.standard_normal()
            make_run(
                Path(folder), f"setting{i % 10}", i // 10, bound, items=random.standard_normal(297)
            )
        start = time.process_time()
        code = main([folder])
        assert code == 0
        return runs, time.process_time() - start


KINDS: dict[str, Callable[[int], tuple[float, float]]] = {
    "parameters": lambda n: step(width=n),
    "side": lambda n: (n, step(side=n)[1]),
    "batch": lambda n: (n, step(batch=n)[1]),
    "test items": test,
    "runs": report,
}


def exponent(points: list[tuple[float, float]]) -> float:
    """Fit b of seconds ~ n^b."""
    last = points[len(points) // 2 - (len(points) < 4) :]
    x, y = ([math.log(point[place]) for point in last] for place in (0, 1))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum(
        (a - mx) ** 2 for a in x
    )


def main() -> None:
    from record import record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    if options.one:
        kind, size = options.one
        n, seconds = KINDS[kind](int(size))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([n, seconds, memory]))
        return
    figures, ratios = {}, {}
    for kind in options.kinds:
        points = []
        for size in SIZES[kind]:
            line = [sys.executable, __file__, "--one", kind, str(size)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            points.append(json.loads(done.stdout.splitlines()[-1]))
            n, seconds, memory = points[-1]
            print(f"{kind} {n:,.0f}: {seconds:.3g} s, {memory:.2f} GiB", flush=True)
        figures[kind] = points
        ratios[f"exponent of {kind}"] = exponent([(n, seconds) for n, seconds, _ in points])
    record("growth", ratios, figures, enough=1.0)  # exponents below linear are noise


if __name__ == "__main__":
    main()
