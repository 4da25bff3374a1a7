"""Measure how far a report's draws lower the variance of the mean diffusion term.

    python benchmarks/estimator.py [--steps 600] [--repeats 200]

The reference is independent draws at uniform times. A digits network is trained with the defaults
but for its length. Each of the 297 test items is drawn twice, and this is repeated with other times
and noise. The number of evaluations for a standard error of .01 bits/dim is proportional to the
variance: a ratio is the share of evaluations that are needed, compared with uniform times.
"""

import argparse
import math
import statistics
import tempfile

import torch
from record import record

import triptych
from triptych.diffusion.draws import BELOW_ONE, evaluation_draw, evaluation_times

DRAWS = 2  # draws per item


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        opened = triptych.load(
            triptych.train([f"trainer.max_steps={args.steps}", f"paths.log_dir={folder}"])
        )
    model, split = opened.model.eval(), opened.data.splits["test"]
    model.before_accounting()
    model.before_report()
    index = torch.arange(len(split))
    x = split.batch(index).x
    bits = 1 / (model.dims * math.log(2))
    torch.set_num_threads(1)

    def draw(kind, seed, repeat):
        """Return estimates of the items' diffusion terms, nats (B,)."""
        _, eps, _ = evaluation_draw(model.event, index, seed, repeat, DRAWS)
        generator = torch.Generator().manual_seed(DRAWS * seed + repeat)
        u, weight = evaluation_times(index, seed, repeat, DRAWS), 1.0
        if kind in ("uniform", "density"):
            u = torch.rand(len(x), generator=generator, dtype=torch.float64)
        if kind in ("density", "spread density", "controlled"):
            u, weight = model.control.times(u)
        t = u.float().clamp(max=BELOW_ONE)
        nats = model.bound.diffusion(model.denoiser, x, t, eps).nats
        return (
            model.control(nats, x, t, eps, weight)
            if kind == "controlled"
            else nats.double() * weight
        )

    def variance(kind):
        means = [
            torch.stack([draw(kind, seed, r) for r in range(DRAWS)]).mean().item() * bits
            for seed in range(1000, 1000 + args.repeats)
        ]
        print(
            f"{kind:16s}{statistics.mean(means):9.4f} bits/dim, std {statistics.stdev(means):.4f}",
            flush=True,
        )
        return statistics.variance(means)

    figures = {
        kind: variance(kind)
        for kind in ("uniform", "spread", "density", "spread density", "controlled")
    }
    ratios = {
        f"evaluations, {kind} / uniform": figures[kind] / figures["uniform"]
        for kind in [*figures][1:]
    }
    record("estimator", ratios, {"evaluations": DRAWS * len(x), "variance": figures})


if __name__ == "__main__":
    main()
