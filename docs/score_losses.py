"""Four score-matching losses at the optimum and away from it: the table of docs/score-matching.md.

python docs/score_losses.py
"""

import torch

from triptych.diffusion.mixture import GaussianMixture
from triptych.tutorial.score_matching import denoising, explicit, implicit, rademacher, sliced

N, SIGMA = 200_000, 0.5


def main() -> None:
    torch.set_default_dtype(torch.float64)
    mixture = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], torch.eye(2).expand(2, 2, 2) * 0.1)
    generator = torch.Generator().manual_seed(0)
    x = mixture.sample(N, generator)[0].double()
    eps = torch.randn(x.shape, generator=generator)
    z = x + SIGMA * eps
    truth = mixture.score(z, 1.0, SIGMA)
    v = rademacher(z, generator)
    information = 0.5 * truth.square().sum(1)
    offsets = {"explicit": 0 * information, "implicit": -information, "sliced": -information}
    offsets["denoising"] = truth.shape[1] / (2 * SIGMA**2) - information
    print(f"{'loss minus its constant':24s} {'true score':>22s} {'0.8 true score + 0.3':>24s}")
    for name in ("explicit", "implicit", "sliced", "denoising"):
        row = []
        for scale, shift in ((1.0, 0.0), (0.8, 0.3)):

            def score(at, scale=scale, shift=shift):
                return scale * mixture.score(at, 1.0, SIGMA) + shift

            parts = []
            for i in range(0, N, 20_000):
                part = slice(i, i + 20_000)
                found = {
                    "explicit": lambda p=part: explicit(score, z[p], truth[p]),
                    "implicit": lambda p=part: implicit(score, z[p]),
                    "sliced": lambda p=part: sliced(score, z[p], v[p]),
                    "denoising": lambda p=part: denoising(score, z[p], eps[p], SIGMA),
                }[name]()
                parts.append(found.detach() - offsets[name][part])
            value = torch.cat(parts)
            row.append(f"{value.mean():.4f} ± {value.std() / N**0.5:.4f}")
        print(f"{name:24s} {row[0]:>22s} {row[1]:>24s}")


if __name__ == "__main__":
    main()
