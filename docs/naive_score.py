"""Show three failures of naive score matching, and how noise repairs them (Luo 2022).

python docs/naive_score.py [naive_score.png]: prints the figures of docs/score-matching.md and draws
them.
"""

import sys
from itertools import pairwise

import torch
from score_losses import denoising, explicit, implicit
from torch import Tensor, nn

from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import AnnealedLangevin, Langevin
from triptych.diffusion.schedule import Linear

STEPS, BATCH = 1500, 256


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dim: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(dim, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, dim)
    )


def fit(loss, steps: int = STEPS) -> tuple[nn.Module, list[float]]:
    """Train a network on ``loss(score, step)``; return it and each hundred steps' mean loss."""
    score, history = network(), []
    optimiser = torch.optim.Adam(score.parameters(), 2e-3)
    for step in range(steps):
        value = loss(score, step).mean()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(score.parameters(), 10.0)
        optimiser.step()
        history.append(value.item())
    return score, torch.tensor(history).view(-1, 100).mean(1).tolist()


def low_density(mixture: GaussianMixture) -> tuple[Tensor, list[tuple[float, float, float]]]:
    """Train a score by implicit matching; return its error on a grid and in bands.

    The three bands are of density: far from data, between, and where the data is.
    """
    score, _ = fit(lambda s, step: implicit(s, mixture.sample(BATCH, seeded(step))[0]))
    axis = torch.linspace(-3, 3, 61)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        error = explicit(score, grid, mixture.score(grid)).mul(2).sqrt()
    density = mixture.log_prob(grid)
    edges = (-1e9, density.max().item() - 30, density.max().item() - 8, 1e9)
    bands = [
        (low, high, error[(density > low) & (density <= high)].mean().item())
        for low, high in pairwise(edges)
    ]
    return error.view(61, 61).T, bands


def manifold() -> dict[str, list[float]]:
    """Return the losses of a score of data on a line in the plane, without and with noise.

    The noise has sigma = 0.3.
    """

    def line(seed: int) -> Tensor:
        u = torch.randn(BATCH, 1, generator=seeded(seed))
        return torch.cat([u, u], 1) / 2**0.5

    def noisy(score, step: int) -> Tensor:
        eps = torch.randn(BATCH, 2, generator=seeded(10**6 + step))
        return denoising(score, line(step) + 0.3 * eps, eps, 0.3)

    return {
        "implicit, no noise": fit(lambda s, step: implicit(s, line(step)))[1],
        "denoising, sigma 0.3": fit(noisy)[1],
    }


def weights(mixture: GaussianMixture, seeds: int = 5) -> dict[str, list[float]]:
    """Return the share of the smaller mode under the exact score, for each seed."""
    oracle, schedule = Oracle(mixture, VariancePreserving()), Linear(-10.0, 8.0)
    samplers = {
        "plain": Langevin(60, inner=20, size=0.002),
        "annealed": AnnealedLangevin(60, inner=40, rate=0.2),
    }
    return {
        name: [
            (sampler(oracle, schedule, (4000, 2), generator=seeded(s))[:, 0] < 0)
            .double()
            .mean()
            .item()
            for s in range(seeds)
        ]
        for name, sampler in samplers.items()
    }


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mixture = GaussianMixture(
        [0.2, 0.8], [[-2.0, 0.0], [2.0, 0.0]], torch.eye(2).expand(2, 2, 2) * 0.04
    )
    wide = GaussianMixture(
        [0.2, 0.8], [[-1.5, -1.5], [1.5, 1.5]], torch.eye(2).expand(2, 2, 2) * 0.1
    )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")

    error, bands = low_density(wide)
    for (_, _, size), where in zip(
        bands, ("far from data", "between", "where the data is"), strict=True
    ):
        print(f"1. |score - truth| {where}: {size:.2f}")
    picture = left.imshow(error, origin="lower", extent=(-3, 3, -3, 3), cmap="viridis", vmax=20)
    left.scatter(*wide.sample(500, seeded(0))[0].T, s=2, color="white", linewidths=0)
    left.set_title("1. error of the score; dots: data", fontsize=9)
    figure.colorbar(picture, ax=left)

    for name, history in manifold().items():
        first, middle_one, last = history[0], history[len(history) // 2], history[-1]
        print(f"2. loss on a line, {name}: {first:.1f} -> {middle_one:.1f} -> {last:.1f}")
        middle.plot(range(100, STEPS + 1, 100), history, label=name)
    middle.set_yscale("symlog")
    middle.set_xlabel("step")
    middle.legend(frameon=False, fontsize=8)
    middle.set_title("2. data on a line: the loss", fontsize=9)

    shares = weights(mixture)
    for i, (name, values) in enumerate(shares.items()):
        print(
            f"3. share of the 1/5 mode, {name} Langevin: " + ", ".join(f"{v:.3f}" for v in values)
        )
        right.scatter([i] * len(values), values)
    right.axhline(0.2, color="0.3", linestyle="--", linewidth=1)
    right.set_xticks(range(len(shares)), list(shares))
    right.set_xlim(-0.5, 1.5)
    right.set_ylim(0, 0.6)
    right.set_title("3. share of the 1/5 mode, exact score", fontsize=9)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "naive_score.png", dpi=110)


if __name__ == "__main__":
    main()
