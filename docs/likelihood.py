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
WIDEST = 20.0  # up to this gamma_max the model's density is the Gaussian's own


def gaussian(d: int) -> GaussianMixture:
    """Return a correlated Gaussian in d dimensions."""
    generator = torch.Generator().manual_seed(d)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = torch.randn(1, d, generator=generator, dtype=torch.float64)
    return GaussianMixture([1.0], mean, (root @ root.T / d + 0.1 * torch.eye(d))[None])


def errors(d: int, probes: int | None, gamma_max: float) -> dict[str, list[float]]:
    """Return the errors of the likelihood of a Gaussian in d dimensions, nats/dim."""
    mixture = gaussian(d)
    x, _ = mixture.sample(ITEMS, torch.Generator().manual_seed(1))
    likelihood = Likelihood(Linear(-14.0, gamma_max), probes=probes)
    solution = likelihood(Oracle(mixture, VariancePreserving()), x)
    error = solution.total + mixture.log_prob(x.double())
    return {
        "error of the mean": [error.mean().item() / d],
        "claimed": [solution.stderr.square().sum().sqrt().item() / ITEMS / d],
        "error of an item": [error.abs().mean().item() / d],
    }


def main(record: str = "") -> None:
    settings = {}
    for d in (1, 16):
        for probes in (None, 4, 16, 64):
            trace = "exact" if probes is None else f"{probes} probes"
            settings[f"{d} | {trace}"] = errors(d, probes, WIDEST)
    for gamma_max in (8, 16):
        settings[f"16 | exact, gamma_max = {gamma_max}"] = errors(16, None, gamma_max)
    for setting, figures in settings.items():
        shown = "  ".join(f"{name} {value:+.1e}" for name, (value,) in figures.items())
        print(f"{setting:27} | {shown} nats/dim")
    if record:
        Path(record).write_text(json.dumps({"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
