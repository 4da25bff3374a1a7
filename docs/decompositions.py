r"""The variational diffusion model as a hierarchical VAE, and two decompositions of its bound.

Three restrictions make it one (Luo 2022, sec. "Variational Diffusion Models"): latents have the
data's dimension; encoders are fixed, linear and Gaussian; the last latent is standard normal. On
the path z_0 ... z_T (VDM's numbering, T + 1 latents)

    consistency  (eq. 45)  log q(z_k | z_{k-1}) / p(z_k | z_{k+1})    two random neighbours per term
    matching     (eq. 58)  KL(q(z_{k-1} | z_k, x) || p(z_{k-1} | z_k))    one

have the same sum in expectation. The ratios of one whole path are unbiased in both. Luo argues that
a *term* of the first is noisier, and so is an estimate from a few of its terms.

`python docs/decompositions.py [picture.png]` prints the table and draws the picture of docs/vdm.md.
"""

import math
import sys
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.draws import plain_noise
from triptych.diffusion.hierarchy import Hierarchy
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.normal import Normal
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear, Schedule

ITEMS, STEPS = 20_000, (4, 8, 16, 32, 64)
FORMS = ("consistency", "matching", "consistency as KLs")


def restricted(
    denoiser: Any, schedule: Schedule, decoder: Any, steps: int, dtype: Any = torch.float32
) -> Hierarchy:
    """Return T + 1 levels with the bound of ``Bound(schedule, decoder, steps)`` in expectation."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be a whole number of at least 1")
    process = denoiser.process
    gammas = schedule.gamma(torch.linspace(0.0, 1.0, steps + 1, dtype=dtype))

    def first(x: Tensor) -> Normal:
        alpha, sigma = process.alpha_sigma(gammas[0])
        return Normal(alpha * x, sigma)

    def up(gamma_s: Tensor, gamma_t: Tensor, z: Tensor) -> Normal:
        return forward_step(process, z, gamma_s, gamma_t)

    def down(gamma_s: Tensor, gamma_t: Tensor, z: Tensor) -> Normal:
        return process.posterior(z, denoiser(z, gamma_t).x0, gamma_t, gamma_s)

    ends = [*pairwise(gammas)]
    return Hierarchy(
        encoders=[first, *(partial(up, s, t) for s, t in ends)],
        decoders=[partial(down, s, t) for s, t in ends],
        reconstruction=lambda x, z: decoder.nats(denoiser, x, z, gammas[0]),
        prior=lambda z: Normal(torch.zeros_like(z), process.prior_std(gammas[-1])),
    )


def forward_step(process: Any, z: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Normal:
    """Return q(z_t | z_s) (eq. 31).

    N(alpha_t / alpha_s z, sigma_t^2 (1 - exp(gamma_s - gamma_t))).
    """
    alpha_s, _ = process.alpha_sigma(gamma_s)
    alpha_t, sigma_t = process.alpha_sigma(gamma_t)
    return Normal(alpha_t / alpha_s * z, sigma_t * (-torch.expm1(gamma_s - gamma_t)).sqrt())


class Terms(NamedTuple):
    """The T terms between the ends, (T, B) nats each, and the prior term of each form, (B,).

    ``consistency`` has the prior term KL(q(z_T | z_{T-1}) || p(z_T)), ``matching`` has KL(q(z_T |
    x) || p(z_T)). ``as_kl``: the consistency terms as eq. 45 prints them; their sum is another
    number.
    """

    consistency: Tensor
    consistency_prior: Tensor
    matching: Tensor
    matching_prior: Tensor
    as_kl: Tensor


def take_apart(denoiser: Any, schedule: Schedule, x: Tensor, path: list[Tensor]) -> Terms:
    """Compute both forms on the same paths z_0 ... z_T, without the reconstruction term.

    ``path``: from ``restricted(...).path``.
    """
    process, steps = denoiser.process, len(path) - 1
    gammas = schedule.gamma(torch.linspace(0.0, 1.0, steps + 1, dtype=x.dtype))
    alpha, sigma = process.alpha_sigma(gammas)
    end = Normal(torch.zeros_like(x), process.prior_std(gammas[-1]))
    consistency, matching, as_kl = [], [], []
    below = Normal(alpha[0] * x, sigma[0])
    for k in range(steps):
        guess = denoiser(path[k + 1], gammas[k + 1]).x0
        model = process.posterior(path[k + 1], guess, gammas[k + 1], gammas[k])
        truth = process.posterior(path[k + 1], x, gammas[k + 1], gammas[k])
        consistency.append(below.log_prob(path[k]) - model.log_prob(path[k]))
        as_kl.append(below.kl(model))
        matching.append(truth.kl(model))
        below = forward_step(process, path[k], gammas[k], gammas[k + 1])
    return Terms(
        torch.stack(consistency),
        below.kl(end),
        torch.stack(matching),
        Normal(alpha[-1] * x, sigma[-1]).kl(end),
        torch.stack(as_kl),
    )


class Decomposition(NamedTuple):
    """One estimator of the bound without its reconstruction term.

    ``mean``, ``stderr``: mean and standard error in nats. ``path``: variance of the sum over a
    whole path, nats^2. ``step``: variance of T times one term that is chosen at random, as in
    training, nats^2.
    """

    mean: float
    stderr: float
    path: float
    step: float


def summarise(terms: Tensor, prior: Tensor) -> Decomposition:
    """Return the row of one form, from its terms (T, B) and its prior term (B,)."""
    terms, prior = terms.double(), prior.double()
    total = terms.sum(0) + prior
    scaled = len(terms) * terms + prior
    step = scaled.square().mean() - scaled.mean().square()
    return Decomposition(
        total.mean().item(),
        total.std().item() / math.sqrt(len(total)),
        total.var().item(),
        step.item(),
    )


def ring() -> GaussianMixture:
    """Return eight equal Gaussians on a circle in the plane."""
    angle = torch.arange(8) * (2 * math.pi / 8)
    means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.full((8,), 1 / 8), means, torch.eye(2).expand(8, 2, 2) * 0.15**2)


def measure(steps: int) -> dict[str, Decomposition]:
    """Return the estimates of each form, on the same paths."""
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

    results = {steps: measure(steps) for steps in STEPS}
    for steps, rows in results.items():
        for form, row in rows.items():
            print(
                f"T = {steps:2}  {form:18}  mean {row.mean:7.3f} ± {row.stderr:.3f} nats   "
                f"variance of a path {row.path:8.2f}, of one term x T {row.step:9.1f}"
            )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for form in FORMS:
        left.plot(STEPS, [results[steps][form].mean for steps in STEPS], marker="o", label=form)
        if form != FORMS[2]:
            middle.plot(
                STEPS, [results[steps][form].step for steps in STEPS], marker="o", label=form
            )
            right.plot(
                STEPS, [results[steps][form].path for steps in STEPS], marker="o", label=form
            )
    titles = ("mean, nats", "variance of one term × T", "variance of a whole path")
    for ax, title in zip((left, middle, right), titles, strict=True):
        ax.set(xscale="log", yscale="log", title=title, xlabel="steps T")
        ax.set_xticks(STEPS, [str(steps) for steps in STEPS])
        ax.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "decompositions.png", dpi=110)


if __name__ == "__main__":
    main()
