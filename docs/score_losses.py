r"""Score matching: four losses for a score s(z) of a density p (Luo 2022, on score-based models).

    explicit    1/2 |s - grad log p|^2                        needs the true score
    implicit    1/2 |s|^2 + div s                             Hyvarinen 2005
    sliced      1/2 |s|^2 + v . grad(v . s), E v v^T = I      Song et al. 2019 (variance-reduced)
    denoising   1/2 |s + eps / sigma|^2, z = alpha x + sigma eps    Vincent 2011

Their expectations differ by constants only, so they have one minimiser. With the (half) Fisher
information J = 1/2 E|grad log p|^2 of p, and d / (2 sigma^2) that of the noise,

    implicit = sliced = explicit - J,        denoising = explicit - J + d / (2 sigma^2)

where p is the noisy density of z at that sigma. All losses are (B,); ``score`` maps (B, d) to (B,
d), row by row.

`python docs/score_losses.py` prints the table of docs/score-matching.md: at the optimum and away
from it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.diffusion.mixture import GaussianMixture

N, SIGMA = 200_000, 0.5
Score = Callable[[Tensor], Tensor]


def explicit(score: Score, z: Tensor, truth: Tensor) -> Tensor:
    """Compute 1/2 |s(z) - truth|^2 for truth = grad log p(z), (B, d)."""
    return 0.5 * (score(z) - truth).square().sum(1)


def implicit(score: Score, z: Tensor) -> Tensor:
    """Compute 1/2 |s|^2 + div s, with one backward pass per dimension for the divergence."""
    z, s = _tracked(score, z)
    columns = [
        torch.autograd.grad(s[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])
    ]
    return 0.5 * s.square().sum(1) + torch.stack(columns).sum(0)


def sliced(score: Score, z: Tensor, v: Tensor) -> Tensor:
    """Compute 1/2 |s|^2 + v . grad(v . s) for v (B, d) with E v v^T = I.

    It takes one backward pass in any dimension.
    """
    z, s = _tracked(score, z)
    along = torch.autograd.grad((v * s).sum(), z, create_graph=True)[0]
    return 0.5 * s.square().sum(1) + (v * along).sum(1)


def denoising(score: Score, z: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute 1/2 |s(z) + eps / sigma|^2 for z = alpha x + sigma eps.

    The target is the score of q(z | x).
    """
    return 0.5 * (score(z) + eps / sigma).square().sum(1)


def rademacher(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions with independent signs, (B, d).

    Of all v with E v v^T = I they give the least noise in ``sliced``.
    """
    bits = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def _tracked(score: Score, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    return z, score(z)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    mixture = GaussianMixture(
        [0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], torch.eye(2).expand(2, 2, 2) * 0.1
    )
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
                terms = {
                    "explicit": lambda p=part: explicit(score, z[p], truth[p]),
                    "implicit": lambda p=part: implicit(score, z[p]),
                    "sliced": lambda p=part: sliced(score, z[p], v[p]),
                    "denoising": lambda p=part: denoising(score, z[p], eps[p], SIGMA),
                }[name]()
                parts.append(terms.detach() - offsets[name][part])
            value = torch.cat(parts)
            row.append(f"{value.mean():.4f} ± {value.std() / N**0.5:.4f}")
        print(f"{name:24s} {row[0]:>22s} {row[1]:>24s}")


if __name__ == "__main__":
    main()
