"""The tutorial's two decompositions of one bound, and the trap between them: a table and a picture.

python docs/decompositions.py [picture.png]
"""

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.draws import plain_noise
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.tutorial.decompositions import restricted, take_apart

ITEMS, STEPS = 20_000, (4, 8, 16, 32, 64)
FORMS = ("consistency", "matching", "consistency as KLs")


class Decomposition(NamedTuple):
    """One estimator of the bound less its reconstruction: mean, standard error, and two variances in nats^2.

    ``path``: of the sum over a whole path. ``step``: of T times one term chosen at random, as training
    takes it.
    """

    mean: float
    stderr: float
    path: float
    step: float


def summarise(terms: Tensor, prior: Tensor) -> Decomposition:
    """Return the row of one form's terms (T, B) and prior term (B,)."""
    terms, prior = terms.double(), prior.double()
    total = terms.sum(0) + prior
    scaled = len(terms) * terms + prior
    step = scaled.square().mean() - scaled.mean().square()
    return Decomposition(
        total.mean().item(), total.std().item() / math.sqrt(len(total)), total.var().item(), step.item()
    )


def ring() -> GaussianMixture:
    """Eight equal Gaussians on a circle, in the plane."""
    angle = torch.arange(8) * (2 * math.pi / 8)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.full((8,), 1 / 8), means, torch.eye(2).expand(8, 2, 2) * 0.15**2)


def measure(steps: int) -> dict[str, Decomposition]:
    """The bound less its reconstruction in each form, on the same paths."""
    mixture, schedule = ring(), Linear(-10.0, 8.0)
    oracle = Oracle(mixture, VariancePreserving())
    x = mixture.sample(ITEMS, torch.Generator().manual_seed(1))[0].double()
    hierarchy = restricted(oracle, schedule, GaussianDensity(), steps, dtype=torch.float64)
    path = hierarchy.path(x, plain_noise(torch.Generator().manual_seed(2)))
    terms = take_apart(oracle, schedule, x, path)
    rows = (
        summarise(terms.consistency, terms.consistency_prior),
        summarise(terms.matching, terms.matching_prior),
        summarise(terms.as_kl, terms.consistency_prior),
    )
    return dict(zip(FORMS, rows, strict=True))


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {steps: measure(steps) for steps in STEPS}
    for steps, rows in found.items():
        for form, row in rows.items():
            print(
                f"T = {steps:2}  {form:18}  mean {row.mean:7.3f} ± {row.stderr:.3f} nats   "
                f"variance of a path {row.path:8.2f}, of one term x T {row.step:9.1f}"
            )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for form in FORMS:
        left.plot(STEPS, [found[steps][form].mean for steps in STEPS], marker="o", label=form)
        if form != FORMS[2]:
            middle.plot(STEPS, [found[steps][form].step for steps in STEPS], marker="o", label=form)
            right.plot(STEPS, [found[steps][form].path for steps in STEPS], marker="o", label=form)
    titles = ("mean, nats", "variance of one term × T", "variance of a whole path")
    for ax, title in zip((left, middle, right), titles, strict=True):
        ax.set(xscale="log", yscale="log", title=title, xlabel="steps T")
        ax.set_xticks(STEPS, [str(steps) for steps in STEPS])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "decompositions.png", dpi=110)


if __name__ == "__main__":
    main()
