"""Print a table: the ODE's likelihood against a density that is known exactly.

python docs/likelihood.py [RECORD]

For example: benchmarks/results/likelihood.json
"""

import json
import sys
from pathlib import Path

import torch

from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear

ITEMS = 200
SCHEDULE = Linear(-14.0, 20.0)  # so wide that the model's density is the Gaussian's own


def gaussian(d: int) -> GaussianMixture:
    """Return a correlated Gaussian in d dimensions."""
    generator = torch.Generator().manual_seed(d)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = torch.randn(1, d, generator=generator, dtype=torch.float64)
    return GaussianMixture([1.0], mean, (root @ root.T / d + 0.1 * torch.eye(d))[None])


def main(record: str = "") -> None:
    settings = {}
    for d in (1, 16):
        mixture = gaussian(d)
        x, _ = mixture.sample(ITEMS, torch.Generator().manual_seed(1))
        exact = -mixture.log_prob(x.double())
        for probes in (None, 4, 16, 64):
            solution = Likelihood(SCHEDULE, probes=probes)(Oracle(mixture, VariancePreserving()), x)
            error = solution.total - exact
            claimed = solution.stderr.square().sum().sqrt().item() / ITEMS / d
            figures = {
                "error of the mean": [error.mean().item() / d],
                "claimed": [claimed],
                "error of an item": [error.abs().mean().item() / d],
            }
            trace = "exact" if probes is None else f"{probes} probes"
            settings[f"{d} | {trace}"] = figures
            shown = "  ".join(f"{name} {value:+.1e}" for name, (value,) in figures.items())
            print(f"{d:2} | {trace:9} | {shown} nats/dim")
    if record:
        Path(record).write_text(json.dumps({"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
