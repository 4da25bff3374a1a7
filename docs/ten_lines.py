"""Triptych in ten lines: a mixture, its exact denoiser, the bound, samples, a picture."""

import torch

from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.draws import evaluation_draw
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import DDIM
from triptych.diffusion.schedule import Linear

mixture = GaussianMixture(
    [0.2, 0.8], [[-1.0, -1.0], [1.0, 1.0]], torch.eye(2).expand(2, 2, 2) * 0.1
)
x, _ = mixture.sample(40_000, torch.Generator().manual_seed(0))

schedule, denoiser = Linear(-10.0, 8.0), Oracle(mixture, VariancePreserving())
nelbo = Bound(schedule, GaussianDensity())(
    denoiser, x, evaluation_draw((2,), torch.arange(40_000), 0, 0, 1)
)
samples = DDIM(steps=50)(denoiser, schedule, (4000, 2), generator=torch.Generator().manual_seed(1))

if __name__ == "__main__":
    exact = -mixture.log_prob(x).mean()
    print(f"exact   {exact:.3f} nats")
    print(f"bound   {nelbo.total.mean():.3f} ± {nelbo.total.std() / 200:.3f} nats")
    terms = {
        "prior": nelbo.prior,
        "reconstruction": nelbo.reconstruction,
        "diffusion": nelbo.diffusion,
    }
    print(f"      = {' + '.join(f'{name} {value.mean():.3f}' for name, value in terms.items())}")
    print(
        f"share of the smaller mode: data {(x[:, 0] < 0).float().mean():.3f}, "
        f"samples {(samples[:, 0] < 0).float().mean():.3f}"
    )

    import sys

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    axes.scatter(*x[:1500].T, s=4, color="0.75", linewidths=0, label="data")
    axes.scatter(
        *samples[:1500].T, s=4, color="#0072b2", linewidths=0, alpha=0.6, label="samples (DDIM)"
    )
    axes.set_aspect("equal")
    axes.legend(frameon=False, loc="upper left", markerscale=3)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "ten_lines.png", dpi=120)
