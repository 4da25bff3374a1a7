r"""The variational diffusion model as a hierarchical VAE, and its bound taken apart in two ways.

Three restrictions make it one (tutorial sec. "Variational Diffusion Models"): latents of the data's
dimension; encoders fixed, linear and Gaussian; a standard normal at the end. On the path z_0 ... z_T
(VDM's numbering, T + 1 latents)

    consistency  (eq. 45)  log q(z_k | z_{k-1}) / p(z_k | z_{k+1})           two random neighbours a term
    matching     (eq. 58)  KL(q(z_{k-1} | z_k, x) || p(z_{k-1} | z_k))        one

have the same sum in expectation. The ratios of one whole path are unbiased in either arrangement; the
tutorial argues that a *term* of the first is noisier, and so is an estimate from a few of them.
"""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.diffusion.condition import Condition
from triptych.diffusion.hierarchy import Hierarchy
from triptych.diffusion.normal import Normal
from triptych.diffusion.schedule import Schedule


def restricted(
    denoiser: Any,
    schedule: Schedule,
    decoder: Any,
    steps: int,
    condition: Condition | None = None,
    dtype: Any = torch.float32,
) -> Hierarchy:
    """Return T + 1 levels whose bound is in expectation that of ``Bound(schedule, decoder, steps)``."""
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
        return process.posterior(z, denoiser(z, gamma_t, condition).x0, gamma_t, gamma_s)

    ends = [*pairwise(gammas)]
    return Hierarchy(
        encoders=[first, *(partial(up, s, t) for s, t in ends)],
        decoders=[partial(down, s, t) for s, t in ends],
        reconstruction=lambda x, z: decoder.nats(denoiser, x, z, gammas[0], condition),
        prior=lambda z: Normal(torch.zeros_like(z), process.prior_std(gammas[-1])),
    )


def forward_step(process: Any, z: Tensor, gamma_s: Tensor, gamma_t: Tensor) -> Normal:
    """Return q(z_t | z_s) = N(alpha_t / alpha_s z, sigma_t^2 (1 - exp(gamma_s - gamma_t))) (eq. 31)."""
    alpha_s, _ = process.alpha_sigma(gamma_s)
    alpha_t, sigma_t = process.alpha_sigma(gamma_t)
    return Normal(alpha_t / alpha_s * z, sigma_t * (-torch.expm1(gamma_s - gamma_t)).sqrt())


class Terms(NamedTuple):
    """The T terms between the ends, (T, B) nats each, and the rest of each form, (B,).

    ``consistency`` with its prior term KL(q(z_T | z_{T-1}) || p(z_T)); ``matching`` with KL(q(z_T | x) ||
    p(z_T)); ``as_kl``: the consistency terms as eq. 45 prints them, whose sum is something else.
    """

    consistency: Tensor
    consistency_prior: Tensor
    matching: Tensor
    matching_prior: Tensor
    as_kl: Tensor


def take_apart(
    denoiser: Any, schedule: Schedule, x: Tensor, path: list[Tensor], condition: Any = None
) -> Terms:
    """Compute both forms, less reconstruction, on the same paths z_0 ... z_T (``restricted(...).path``)."""
    process, steps = denoiser.process, len(path) - 1
    gammas = schedule.gamma(torch.linspace(0.0, 1.0, steps + 1, dtype=x.dtype))
    alpha, sigma = process.alpha_sigma(gammas)
    end = Normal(torch.zeros_like(x), process.prior_std(gammas[-1]))
    consistency, matching, as_kl = [], [], []
    below = Normal(alpha[0] * x, sigma[0])
    for k in range(steps):
        guess = denoiser(path[k + 1], gammas[k + 1], condition).x0
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
